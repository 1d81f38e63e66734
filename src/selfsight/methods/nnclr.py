"""NNCLR: a view's partner must be found near the view's nearest neighbour among earlier images.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman: With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations, ICCV 2021.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.method import Facts
from selfsight.methods.two_views import TwoViews
from selfsight.nn import Queue, find, gather, mlp, nearest, process, unit
from selfsight.optim import Optim


class NNCLR(TwoViews):
    """Contrastive: the nearest neighbour among earlier images stands in for a view."""

    paper = "Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning, 2021"
    # Not muon: to make a step of a 2048 x 2048 matrix orthogonal would take longer than the rest of the step.
    optim = Optim("adamw", lr=2e-3, weight_decay=0.01, warmup=0.05)
    seen = "two views; the nearest neighbour of one among earlier images must find the other"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """NNCLR's hyperparameters."""

        temperature: float = 0.1
        """Divides the similarities."""
        hidden: int = 2048
        """Width of the projector's two hidden layers."""
        projection: int = 256
        """Length of the projected vectors."""
        bottleneck: int = 4096
        """Width of the predictor's hidden layer."""
        queue: int | None = None
        """Earlier views among which neighbours are looked for; by default half of the images, from 256 to 98,304."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), queue=self.queue or min(98_304, max(256, facts.images // 2)))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.temperature = config.temperature
        projector = mlp(backbone.dim, config.hidden, config.hidden, config.projection)
        self.head = nn.Sequential(projector, nn.BatchNorm1d(config.projection))
        self.predictor = mlp(config.projection, config.bottleneck, config.projection)
        self.queue = Queue(config.queue or 98_304, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss, symmetric in the views (equation 3 and appendix A)."""
        z = self.head(self.backbone(self.draw(batch)))  # (2B, D)
        predicted = unit(self.predictor(z)).chunk(2)  # (B, D) each
        z = unit(z.detach())
        near = nearest(z, self.queue.rows).chunk(2)
        losses = [find(near[i], gather(predicted[1 - i]), self.temperature) for i in (0, 1)]
        self.queue.push(z[: len(batch.images)])
        return {"loss": torch.stack(losses).mean(), "chance": torch.tensor(math.log(len(z) // 2 * process()[1]))}
