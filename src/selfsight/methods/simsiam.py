"""SimSiam: from one view predict what the same network makes of the other, which gets no gradient.

Chen, He: Exploring Simple Siamese Representation Learning, CVPR 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.two_views import TwoViews
from selfsight.nn import apart, mlp
from selfsight.optim import Optim


class SimSiam(TwoViews):
    """Siamese: from one view, predict the same network's features of the other; no negatives, no teacher."""

    paper = "Chen & He, Exploring Simple Siamese Representation Learning, 2021"
    # Not muon: to make a step of a 2048 x 2048 matrix orthogonal would take longer than the rest of the step.
    # The predictor's rate does not fall, so that it keeps up with the features (section 4.2).
    optim = Optim("adamw", lr=2e-3, weight_decay=0.01, warmup=0.05, steady=("predictor",))
    seen = "two views; from each the network predicts its own features of the other"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """SimSiam's hyperparameters."""

        hidden: int = 2048
        """Width of the projector, of three layers."""
        bottleneck: int = 512
        """Width of the predictor's hidden layer: less than the projector's."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        # The output has a BatchNorm too, without which training is worse (section 4.4, table 3).
        projector = mlp(backbone.dim, config.hidden, config.hidden, config.hidden)
        self.head = nn.Sequential(projector, nn.BatchNorm1d(config.hidden, affine=False))
        self.predictor = mlp(config.hidden, config.bottleneck, config.hidden)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss, symmetric in the two views: 2 + twice the paper's equation 2, so that 0 is the best."""
        z = self.head(self.backbone(self.draw(batch)))  # (2B, D)
        target = self.target(z.detach(), len(batch.images))
        return {"loss": apart(self.predictor(z), target).mean(), "chance": torch.tensor(2.0)}

    def target(self, z: Tensor, count: int) -> Tensor:
        """Return what is to be predicted from each view, (2B, D): its partner among z (2B, D), without gradients."""
        return z.roll(count, 0)
