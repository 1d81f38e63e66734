"""LeJEPA: views meet in the centre of an image's large views, and features are held to a round Gaussian.

Balestriero, LeCun: LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.two_views import MultiCrop
from selfsight.nn import exact, mlp, total
from selfsight.optim import Optim

KNOTS, FARTHEST = 17, 3.0
"""Frequencies at which characteristic functions are compared: so many, from 0 to this."""


class LeJEPA(MultiCrop):
    """Joint embedding: views agree with their centre, and features are made a round Gaussian; no teacher."""

    paper = "Balestriero & LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025"
    # Not muon: to make a step of a 2048 x 2048 matrix orthogonal would take longer than the rest of the step.
    optim = Optim("adamw", lr=2e-3, weight_decay=0.01, warmup=0.05)
    directions = False
    batch_size = 64  # in several views each
    seen = "two large views, whose centre a small view must meet as well"

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """LeJEPA's hyperparameters."""

        weight: float = 0.05
        """Share of the loss that holds features to a Gaussian, the paper's lambda; the rest is agreement."""
        slices: int = 1024
        """Random directions along which features are compared with a Gaussian."""
        hidden: int = 2048
        """Width of the projector's two hidden layers."""
        projection: int = 64
        """Length of the projected vectors."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.weight, self.slices = config.weight, config.slices
        self.head = mlp(backbone.dim, config.hidden, config.hidden, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss over all views and its two terms (equation 8)."""
        features = self.features(batch)
        z = exact(self.head(features.flatten(0, 1))).view(*features.shape[:2], -1)  # (V, B, D)
        directions = F.normalize(torch.randn(z.shape[2], self.slices), dim=0).to(z)  # the same in all processes
        agreement, gaussian = terms(z, directions)
        loss = (1 - self.weight) * agreement + self.weight * gaussian
        return {"loss": loss, "agreement": agreement.detach(), "gaussian": gaussian.detach()}


def terms(z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far views (V, B, D) are from the centre of the first two, squared, and how far from a round Gaussian.

    The latter is the mean of Epps' and Pulley's statistics of each view along the unit `directions` (D, M).
    """
    agreement = (z - z[:2].mean(0)).square().mean()
    return agreement, torch.stack([epps_pulley(view @ directions) for view in z]).mean()


def epps_pulley(x: Tensor) -> Tensor:
    """Return Epps' and Pulley's statistic of the columns of x (N, M), their mean: 0 where each is a standard Gaussian.

    N times the integral, over frequencies t, of the squared distance of the columns' empirical characteristic function
    from exp(-t²/2), weighted by that; by the trapezoid rule, twice from 0 on (section 4.2.3).
    """
    t = torch.linspace(0, FARTHEST, KNOTS, dtype=x.dtype, device=x.device)
    target = (-t.square() / 2).exp()
    angle = x[:, :, None] * t  # (N, M, T)
    count = total(x.new_tensor(float(len(x))))
    real, imaginary = total(angle.cos().sum(0)) / count, total(angle.sin().sum(0)) / count  # (M, T)
    distance = ((real - target).square() + imaginary.square()) * target
    return 2 * count * torch.trapezoid(distance, t, dim=1).mean()
