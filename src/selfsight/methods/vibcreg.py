"""VIbCReg: VICReg with features whitened by iterative normalization, and correlations instead of covariances.

Lee, Aune: VIbCReg: Variance-Invariance-better-Covariance Regularization for Self-Supervised Learning on Time Series,
2021.
"""

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

NEWTON = 5
"""Newton's iterations towards the inverse root of the covariance (Huang et al. 2019, "Iterative Normalization")."""


class VIbCReg(TwoViews):
    """Redundancy reduction: views agree, each feature keeps its variance, no two whitened features correlate."""

    paper = "Lee & Aune, VIbCReg: Variance-Invariance-better-Covariance Regularization, 2021"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views whose features must agree"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """VIbCReg's hyperparameters."""

        invariance: float = 25.0
        """Weight of the distance between the views' features."""
        variance: float = 25.0
        """Weight of what each feature's standard deviation lacks of 1."""
        covariance: float = 200.0
        """Weight of the correlations of different features."""
        dim: int | None = None
        """Width of the projector, of three layers; by default 2048 from 100,000 images on, else 512."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), dim=self.dim or (2048 if facts.images >= 100_000 else 512))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.weights = config.invariance, config.variance, config.covariance
        dim = config.dim or 512
        self.head = mlp(backbone.dim, dim, dim, dim)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss and its three unweighted terms."""
        a, b = exact(self.head(self.backbone(self.draw(batch)))).chunk(2)  # (B, D) each
        a, b = iterative_norm(gather(a)), iterative_norm(gather(b))
        terms = F.mse_loss(a, b), (spread(a) + spread(b)) / 2, correlations(a) + correlations(b)
        loss = sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
        names = ("invariance", "variance", "correlation")
        return {"loss": torch.as_tensor(loss)} | {n: t.detach() for n, t in zip(names, terms, strict=True)}


def iterative_norm(z: Tensor) -> Tensor:
    """Return features z (N, D) centred and nearly white, by Newton's iterations to the covariance's inverse root."""
    z = z - z.mean(0)
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    covariance = z.T @ z / len(z) + 1e-5 * identity
    trace = covariance.trace()
    covariance, root = covariance / trace, identity
    for _ in range(NEWTON):
        root = (3 * root - root @ root @ root @ covariance) / 2
    return z @ root / trace.sqrt()


def correlations(z: Tensor) -> Tensor:
    """Return the mean squared correlation of different features of z (N, D)."""
    unit = F.normalize(z - z.mean(0), dim=0)
    correlation = unit.T @ unit  # (D, D)
    d = len(correlation)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / (d * (d - 1))
