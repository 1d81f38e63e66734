"""BYOL: from one view predict what a teacher, a moving average of the student, makes of the other.

Grill et al.: Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.method import Facts
from selfsight.methods.two_views import Taught
from selfsight.nn import apart, mlp
from selfsight.optim import Optim


class BYOL(Taught):
    """Bootstrapping: from one view, predict an averaged teacher's features of the other; no negatives."""

    paper = "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, 2020"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views; from each the student predicts the teacher's features of the other"

    @dataclass(frozen=True)
    class Config(Taught.Config):
        """BYOL's hyperparameters."""

        hidden: int = 4096
        """Width of the hidden layer of the projector and of the predictor."""
        projection: int = 256
        """Length of the projected vectors."""
        norm: bool | None = None
        """Whether the projector ends with BatchNorm, as MoCo v3's and SimSiam's; the paper's has none. By default up to
        100,000 images: in short trainings it is worth two points of a linear probe."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), norm=facts.grown == 0 if self.norm is None else self.norm)

    def __init__(self, backbone: Backbone, config: Config) -> None:
        head = mlp(backbone.dim, config.hidden, config.projection)
        if config.norm:
            # An untrained network's features are much alike: what tells images apart, this makes large from the start.
            head.append(nn.BatchNorm1d(config.projection, affine=False))
        super().__init__(backbone, config, head)
        self.predictor = mlp(config.projection, config.hidden, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss, symmetric in the two views (equation 2)."""
        x = self.draw(batch)  # (2B, C, S, S)
        predicted = self.predictor(self.head(self.backbone(x)))  # (2B, D)
        target = self.target(self.teacher(x), len(batch.images))
        return {"loss": apart(predicted, target).mean(), "chance": torch.tensor(2.0)}

    def target(self, z: Tensor, count: int) -> Tensor:
        """Return what is to be predicted from each view, (2B, D): its partner among the teacher's z (2B, D)."""
        return z.roll(count, 0)
