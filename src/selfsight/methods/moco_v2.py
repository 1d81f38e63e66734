"""MoCo v2+: a view must find a teacher's features of its partner among those of earlier images, kept in a queue.

He et al.: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020; Chen et al.: Improved Baselines
with Momentum Contrastive Learning, 2020. The + is solo-learn's: both views are queries.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.method import Facts
from selfsight.methods.two_views import Taught
from selfsight.nn import Queue, cosines, mlp, unit
from selfsight.optim import Optim


class MoCoV2(Taught):
    """Contrastive: a view finds the teacher's features of its partner among a queue of earlier images'."""

    paper = "Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views that must find each other among those of earlier images"

    @dataclass(frozen=True)
    class Config(Taught.Config):
        """MoCo's hyperparameters."""

        imagenet: ClassVar[float] = 0.999
        temperature: float = 0.2
        """Divides the similarities."""
        hidden: int = 2048
        """Width of the projector's hidden layer."""
        projection: int = 128
        """Length of the projected vectors."""
        queue: int | None = None
        """Earlier views to be told apart from; by default a quarter of the images, from 256 to the paper's 65,536."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            queue = self.queue or min(65_536, max(256, facts.images // 4))
            return replace(super().fit_to(facts), queue=queue)

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config, mlp(backbone.dim, config.hidden, config.projection))
        self.temperature = config.temperature
        self.queue = Queue(config.queue or 65_536, config.projection)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return InfoNCE, the mean over both views as queries (equation 1)."""
        x = self.draw(batch)  # (2B, C, S, S)
        query = unit(self.head(self.backbone(x)))  # (2B, D)
        key = unit(self.teacher(x))
        loss = info_nce(query, key.roll(len(batch.images), 0), self.queue.rows, self.temperature)
        for view in key.chunk(2):  # one after the other: of several processes the order is that of one
            self.queue.push(view)
        return {"loss": loss, "chance": torch.tensor(math.log(len(self.queue.rows) + 1))}


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return -log of the share that a query's key has among it and the negatives, by exp(cosine / temperature).

    Unit vectors: `query` and `key` (N, D), `negatives` (Q, D), which are the same for all queries.
    """
    positive = (query * key).sum(1, keepdim=True)  # (N, 1)
    logits = torch.cat([positive, cosines(query, negatives)], 1) / temperature  # (N, 1 + Q)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
