"""MMCR: the views of an image lie close together, the images' centres as far apart as the space allows.

Yerxa, Kuang, Simoncelli, Chung: Learning Efficient Coding of Natural Images with Maximum Manifold Capacity
Representations, NeurIPS 2023.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.two_views import TwoViews
from selfsight.nn import gather, mlp, unit
from selfsight.optim import Optim


class MMCR(TwoViews):
    """Manifold capacity: the centres of images' views fill the space, which makes each image's views compact."""

    paper = "Yerxa et al., Learning Efficient Coding of Natural Images with Maximum Manifold Capacity, 2023"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views; their centre must be far from other images'"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """MMCR's hyperparameters."""

        hidden: int = 2048
        """Width of the projector's hidden layer."""
        projection: int = 128
        """Length of the projected vectors: at most the number of images of a batch can be told apart in more."""
        pairs: int = 1
        """Pairs of views an image: more make its centre more certain."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.pairs = config.pairs
        self.head = mlp(backbone.dim, config.hidden, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return minus the nuclear norm of the centres, over its largest possible value."""
        x = torch.cat([self.draw(batch) for _ in range(self.pairs)])  # (2 · pairs · B, C, S, S)
        z = unit(self.head(self.backbone(x))).view(2 * self.pairs, len(batch.images), -1)  # (V, B, D)
        return {"loss": capacity_loss(gather(z.transpose(0, 1)))}


def capacity_loss(z: Tensor) -> Tensor:
    """Return minus the nuclear norm of the centres of unit vectors z (N, V, D) of V views of N images (equation 5).

    Divided by sqrt(N · min(N, D)), which it reaches where the views of each image agree and the centres are evenly
    spread: -1 is the best, 0 the worst. The paper leaves out this division, and with it the term of single images.
    """
    n, _, d = z.shape
    nuclear: Tensor = torch.linalg.svdvals(z.mean(1)).sum()
    return -nuclear / math.sqrt(n * min(n, d))
