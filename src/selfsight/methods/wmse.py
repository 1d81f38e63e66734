"""W-MSE: two views' features agree after the batch was whitened, so that they can't all be one.

Ermolov, Siarohin, Sangineto, Sebe: Whitening for Self-Supervised Representation Learning, ICML 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.two_views import TwoViews
from selfsight.nn import apart, exact, gather, mlp
from selfsight.optim import Optim


class WMSE(TwoViews):
    """Redundancy reduction: views agree after whitening, which leaves no two features correlated."""

    paper = "Ermolov et al., Whitening for Self-Supervised Representation Learning, 2021"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views whose whitened features must agree"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """W-MSE's hyperparameters."""

        hidden: int = 1024
        """Width of the projector's hidden layer."""
        projection: int = 64
        """Length of the projected vectors."""
        part: int = 128
        """Images that are whitened together: at least twice the projected vectors' length."""
        rounds: int = 4
        """Divisions of a batch into such parts, each a random one, over which the loss is the mean."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.part, self.rounds = config.part, config.rounds
        self.head = mlp(backbone.dim, config.hidden, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss, the mean over random parts of the batch (equation 5)."""
        a, b = (gather(z) for z in exact(self.head(self.backbone(self.draw(batch)))).chunk(2))  # (N, D) each
        losses = []
        for _ in range(self.rounds):
            for rows in torch.split(torch.randperm(len(a)), self.part):
                if len(rows) == min(self.part, len(a)):  # what is left of a division has too few to whiten
                    losses.append(apart(whiten(a[rows]), whiten(b[rows])).mean())
        return {"loss": torch.stack(losses).mean(), "chance": torch.tensor(2.0)}


def whiten(z: Tensor) -> Tensor:
    """Return features z (N, D) with mean 0 and covariance 1: W (z - mean), W the inverse of the covariance's Cholesky
    factor (equations 6 and 7). A thousandth of 1 is mixed into the covariance, without which it may have no inverse,
    and more into one so large that float32 would not see it."""
    with torch.autocast(z.device.type, enabled=False):  # rounded to bfloat16 a covariance may have no factor
        z = exact(z) - exact(z).mean(0)
        covariance = 0.999 * (z.T @ z / (len(z) - 1))
        ridge = (1e-6 * covariance.detach().trace()).clamp(min=0.001)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(z.shape[1], dtype=z.dtype, device=z.device))
        white: Tensor = torch.linalg.solve_triangular(factor, z.T, upper=False).T
        return white
