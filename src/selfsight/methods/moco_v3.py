"""MoCo v3: a view must predict a teacher's features of its partner, and find them among those of the batch.

Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.two_views import Taught
from selfsight.nn import find, gather, mlp, process, unit
from selfsight.optim import Optim


class MoCoV3(Taught):
    """Contrastive: predict the teacher's features of the partner, to be found among those of the batch."""

    paper = "Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, 2021"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views that must find each other among those of the batch"

    @dataclass(frozen=True)
    class Config(Taught.Config):
        """MoCo v3's hyperparameters."""

        imagenet: ClassVar[float] = 0.99
        temperature: float = 0.2
        """Divides the similarities."""
        hidden: int = 4096
        """Width of the hidden layers of the projector and of the predictor."""
        projection: int = 256
        """Length of the projected vectors."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        vit, dim = bool(backbone.spec.patch_size), config.projection
        hidden = [config.hidden] * (2 if vit else 1)  # a ViT's projector has three layers (section 5.1)
        head = nn.Sequential(mlp(backbone.dim, *hidden, dim), nn.BatchNorm1d(dim, affine=False))
        super().__init__(backbone, config, head)
        self.temperature = config.temperature
        self.predictor = mlp(dim, config.hidden, dim)
        if vit:
            self.predictor.append(nn.BatchNorm1d(dim, affine=False))
            # A random projection of patches is as good as a learned one, and training is steadier (section 4).
            backbone.model.patch_embed.requires_grad_(False)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the mean over both directions of InfoNCE (algorithm 1; its factor of 2 · temperature left out)."""
        x = self.draw(batch)  # (2B, C, S, S)
        queries = unit(self.predictor(self.head(self.backbone(x)))).chunk(2)  # (B, D) each
        keys = unit(self.teacher(x)).chunk(2)
        losses = [find(queries[i], gather(keys[1 - i]), self.temperature) for i in (0, 1)]
        others = len(batch.images) * process()[1]
        return {"loss": torch.stack(losses).mean(), "chance": torch.tensor(math.log(others))}
