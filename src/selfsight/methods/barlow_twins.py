"""Barlow Twins: two views agree feature by feature, and no two features say the same.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import asymmetric_pair, whole
from selfsight.data.images import Batch
from selfsight.methods.method import Facts, Method
from selfsight.nn import gather, mlp
from selfsight.optim import Optim


class BarlowTwins(Method):
    """Redundancy reduction: the cross-correlation of two views' features becomes the identity."""

    paper = "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021"
    optim = Optim("adamw", lr=2e-3, weight_decay=0.01, warmup=0.05)

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Barlow Twins' hyperparameters."""

        weight: float = 0.0051
        """Weight of the off-diagonal terms, the paper's lambda."""
        dim: int | None = None
        """Width of the projector; by default the paper's 8192, and 2048 below 100,000 images."""
        crop_min: float | None = None
        """Smallest crop as a share of the image; by default 0.08, and 0.2 for images below 64 pixels."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(
                self,
                dim=self.dim or (8192 if facts.images >= 100_000 else 2048),
                crop_min=self.crop_min or (0.2 if facts.image_size < 64 else 0.08),
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        size, channels = backbone.spec.image_size, backbone.spec.channels
        config = config.fit_to(Facts(0, size, channels))
        assert config.dim
        assert config.crop_min
        self.weight = config.weight
        self.head = mlp(backbone.dim, config.dim, config.dim, config.dim)
        self.views = asymmetric_pair(size, channels, config.crop_min, config.hflip)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss over two views of each image."""
        x = torch.cat([view(batch) for view in self.views])  # (2B, C, S, S)
        a, b = self.head(self.backbone(x)).float().chunk(2)  # (B, D) each
        return {"loss": barlow_loss(gather(a), gather(b), self.weight)}

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show the images and the two views of each."""
        rows = torch.stack([whole(batch, self.views[0].size), *(view(batch) for view in self.views)])
        return {"Top to bottom: the image, and two views whose features must agree": rows[:, :10]}


def barlow_loss(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return sum_i (1 - C_ii)² + weight · sum_{i≠j} C_ij² (equation 1) for features a, b (N, D) of two views.

    C (D, D) is their cross-correlation over the batch (equation 2).
    """
    a = (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()
    b = (b - b.mean(0)) / (b.var(0, unbiased=False) + 1e-5).sqrt()
    correlation = a.T @ b / len(a)  # (D, D)
    on = correlation.diagonal()
    return (1 - on).square().sum() + weight * (correlation.square().sum() - on.square().sum())
