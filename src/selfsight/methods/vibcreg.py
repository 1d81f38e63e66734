"""VIbCReg: VICReg with features whitened by iterative normalization, and correlations instead of covariances.

Lee, Aune: VIbCReg: Variance-Invariance-better-Covariance Regularization for Self-Supervised Learning on Time Series,
2021.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.methods.vicreg import VICReg, vicreg_terms

NEWTON = 5
"""Newton's iterations towards the inverse root of the covariance (Huang et al. 2019, "Iterative Normalization")."""


class VIbCReg(VICReg):
    """Redundancy reduction: views agree, each feature keeps its variance, no two whitened features correlate."""

    paper = "Lee & Aune, VIbCReg: Variance-Invariance-better-Covariance Regularization, 2021"

    @dataclass(frozen=True)
    class Config(VICReg.Config):
        """VIbCReg's hyperparameters."""

        covariance: float = 200.0
        """Weight of the correlations of different features."""

    def terms(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the loss weighs, of the two views' features (N, D), which are whitened first."""
        return vicreg_terms(iterative_norm(a), iterative_norm(b), correlations)


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
