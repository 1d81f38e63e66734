"""SupCon: a view must find all views of its class, where labels are known, and else its partner. Not self-supervised.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan: Supervised Contrastive Learning, NeurIPS 2020.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods.two_views import TwoViews
from selfsight.nn import cosines, gather, mlp, process, unit
from selfsight.optim import Optim


class SupCon(TwoViews):
    """Supervised contrastive: a view finds all views of its class; needs labels, of some images at least."""

    paper = "Khosla et al., Supervised Contrastive Learning, 2020"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    supervised = True
    seen = "two views that must find each other and the views of all images of their class"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """SupCon's hyperparameters."""

        temperature: float = 0.1
        """Divides the similarities."""
        hidden: int = 2048
        """Width of the projector's hidden layer."""
        projection: int = 128
        """Length of the projected vectors."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.temperature = config.temperature
        self.head = mlp(backbone.dim, config.hidden, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss over both views of each image; raises SelfsightError without labels."""
        if batch.labels is None:
            raise SelfsightError("supcon learns from labels, which these images don't have; try simclr")
        z = unit(self.head(self.backbone(self.draw(batch))))  # (2B, D)
        # An image without a label is a class of its own: no other has this number.
        classes = torch.where(batch.labels >= 0, batch.labels, -1 - batch.index).repeat(2)
        others = len(z) * process()[1] - 1
        return {"loss": supcon_loss(z, classes, self.temperature), "chance": torch.tensor(math.log(others))}

    def projections(self, features: Tensor) -> None:
        """Return nothing: a point a class is what this loss aims at, and no collapse."""


def supcon_loss(z: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Return the mean, over views and the others of their class, of -log of their share among all others (equation 2).

    `z` (N, D): this process's unit vectors, `classes` (N,) int64; the others are those of all processes.
    """
    itself = process()[0] * len(z) + torch.arange(len(z), device=z.device)
    logits = cosines(z, gather(z)) / temperature  # (N, world · N)
    alone = torch.zeros_like(logits, dtype=torch.bool).scatter(1, itself[:, None], True)
    logs = logits.masked_fill(alone, -math.inf).log_softmax(1)
    positive = (classes[:, None] == gather(classes)) & ~alone
    return -(logs.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(1)).mean()
