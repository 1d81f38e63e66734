"""VICReg: two views' features agree, each feature varies over the batch, and no two say the same.

Bardes, Ponce, LeCun: VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.method import Facts
from selfsight.methods.two_views import TwoViews
from selfsight.nn import exact, gather, mlp, spread
from selfsight.optim import Optim


class VICReg(TwoViews):
    """Redundancy reduction: views agree, each feature keeps its variance, no two features covary."""

    paper = "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, 2022"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    directions = False
    seen = "two views whose features must agree"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """VICReg's hyperparameters."""

        invariance: float = 25.0
        """Weight of the distance between the views' features, the paper's lambda."""
        variance: float = 25.0
        """Weight of what each feature's standard deviation lacks of 1, the paper's mu."""
        covariance: float = 1.0
        """Weight of the covariances, the paper's nu."""
        dim: int | None = None
        """Width of the projector, of three layers, 8192 in the paper; by default 2048 from 100,000 images on, else
        512."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), dim=self.dim or (2048 if facts.images >= 100_000 else 512))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.weights = config.invariance, config.variance, config.covariance
        dim = config.dim or 512
        self.head = mlp(backbone.dim, dim, dim, dim)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss and its three unweighted terms (equation 6)."""
        a, b = exact(self.head(self.backbone(self.draw(batch)))).chunk(2)  # (B, D) each
        terms = self.terms(gather(a), gather(b))
        loss = sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
        names = ("invariance", "variance", "covariance")
        return {"loss": torch.as_tensor(loss)} | {n: t.detach() for n, t in zip(names, terms, strict=True)}

    def terms(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the loss weighs, of the two views' features (N, D) of all processes."""
        return vicreg_terms(a, b)


def covariances(z: Tensor) -> Tensor:
    """Return the sum of the squared covariances of different features of z (N, D), over D (equations 3 and 4)."""
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)  # (D, D)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def vicreg_terms(
    a: Tensor, b: Tensor, redundancy: Callable[[Tensor], Tensor] = covariances
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the invariance, variance and covariance terms of two views' features (N, D) (equations 1 to 5).

    `redundancy` says otherwise than by covariances how much one view's features (N, D) tell the same.

    Equation 6 sums both views' variance terms; the authors' code, which the published weights are for, takes the mean.
    """
    return F.mse_loss(a, b), (spread(a) + spread(b)) / 2, redundancy(a) + redundancy(b)
