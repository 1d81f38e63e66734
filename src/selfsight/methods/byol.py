"""BYOL: from one view predict what a teacher, a moving average of the student, makes of the other.

Grill et al.: Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
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

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config, mlp(backbone.dim, config.hidden, config.projection))
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
