"""Barlow Twins: two views agree feature by feature, and no two features say the same.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.method import Facts
from selfsight.methods.two_views import TwoViews
from selfsight.nn import exact, gather, mlp
from selfsight.optim import Optim


class BarlowTwins(TwoViews):
    """Redundancy reduction: the cross-correlation of two views' features becomes the identity."""

    paper = "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views whose features must agree, each with itself and with no other"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """Barlow Twins' hyperparameters."""

        weight: float = 0.0051
        """Weight of the off-diagonal terms, the paper's lambda."""
        dim: int | None = None
        """Width of the projector, 8192 in the paper; by default 2048 from 100,000 images on, else 512."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), dim=self.dim or (2048 if facts.images >= 100_000 else 512))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.weight, dim = config.weight, config.dim or 512
        self.head = mlp(backbone.dim, dim, dim, dim)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss over two views of each image."""
        a, b = exact(self.head(self.backbone(self.draw(batch)))).chunk(2)  # (B, D) each
        return {"loss": barlow_loss(gather(a), gather(b), self.weight)}


def barlow_loss(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return sum_i (1 - C_ii)² + weight · sum_{i≠j} C_ij² (equation 1) for features a, b (N, D) of two views.

    C (D, D) is their cross-correlation over the batch (equation 2).
    """
    a = (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()
    b = (b - b.mean(0)) / (b.var(0, unbiased=False) + 1e-5).sqrt()
    correlation = a.T @ b / len(a)  # (D, D)
    on = correlation.diagonal()
    return (1 - on).square().sum() + weight * (correlation.square().sum() - on.square().sum())
