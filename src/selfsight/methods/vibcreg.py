"""VIbCReg: VICReg with features whitened in groups by iterative normalization, and correlations instead of covariances.

Lee, Aune: VIbCReg: Variance-Invariance-better-Covariance Regularization for Self-Supervised Learning on Time Series,
2021.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.errors import SelfsightError
from selfsight.methods.vicreg import VICReg, vicreg_terms

NEWTON = 5
"""Newton's iterations towards the inverse root of the covariance (Huang et al. 2019, "Iterative Normalization")."""

GROUP = 32
"""Features that are whitened together, as in the authors' code, where they are 64 groups of 2,048. Newton's iterations
begin far from the root where they are many: of 2,048 together five reach a sixth of it, and no feature its variance."""


class VIbCReg(VICReg):
    """Redundancy reduction: views agree, each feature keeps its variance, no two whitened features correlate."""

    paper = "Lee & Aune, VIbCReg: Variance-Invariance-better-Covariance Regularization, 2021"

    @dataclass(frozen=True)
    class Config(VICReg.Config):
        """VIbCReg's hyperparameters."""

        covariance: float = 200.0
        """Weight of the correlations of different features."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        if config.dim and config.dim > GROUP and config.dim % GROUP:
            raise SelfsightError(
                f"--dim {config.dim}: features are whitened in groups, it must be a multiple of {GROUP}"
            )

    def terms(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the loss weighs, of the two views' features (N, D), which are whitened first."""
        return vicreg_terms(iterative_norm(a), iterative_norm(b), correlations)


def iterative_norm(z: Tensor) -> Tensor:
    """Return features z (N, D) centred and, in groups of GROUP, nearly white.

    By Newton's iterations to the inverse root of a group's covariance, which bfloat16 is too coarse for.
    """
    with torch.autocast(z.device.type, enabled=False):
        parts = (z - z.mean(0)).view(len(z), -1, min(z.shape[1], GROUP)).transpose(0, 1)  # (D / G, N, G)
        identity = torch.eye(parts.shape[2], dtype=z.dtype, device=z.device)
        covariance = parts.mT @ parts / len(z) + 1e-5 * identity
        trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        covariance, root = covariance / trace, identity.expand_as(covariance)
        for _ in range(NEWTON):
            root = (3 * root - root @ root @ root @ covariance) / 2
        white = parts @ root / trace.sqrt()
    return white.transpose(0, 1).reshape(z.shape)


def correlations(z: Tensor) -> Tensor:
    """Return the mean squared correlation of different features of z (N, D)."""
    unit = F.normalize(z - z.mean(0), dim=0)
    correlation = unit.T @ unit  # (D, D)
    d = len(correlation)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / (d * (d - 1))
