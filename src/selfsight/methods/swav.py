"""SwAV: from one view predict to which prototypes another view of the image was assigned, all evenly in use.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.distillation import dino_loss, sinkhorn
from selfsight.methods.method import Facts
from selfsight.methods.two_views import MultiCrop
from selfsight.nn import Queue, cosines, mlp, unit
from selfsight.optim import Optim


class SwAV(MultiCrop):
    """Clustering: from any view, predict the prototypes that a large view is assigned to, online."""

    paper = "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, 2020"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    batch_size = 64  # in several views each
    seen = "two large views, whose prototypes each other view must predict, and a small one"

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """SwAV's hyperparameters."""

        prototypes: int | None = None
        """Clusters; by default the paper's 3000, and 512 below 100,000 images."""
        hidden: int = 2048
        """Width of the projector's hidden layer."""
        projection: int = 128
        """Length of the unit vectors that are compared with the prototypes."""
        temperature: float = 0.1
        """Divides the cosines from which assignments are predicted."""
        epsilon: float = 0.05
        """Divides the cosines by which views are assigned: the lower, the fewer prototypes share a view."""
        rounds: int = 3
        """Rounds of Sinkhorn's algorithm, which spread a batch over the prototypes."""
        queue: int | None = None
        """Earlier large views that are assigned together with the batch's, 0 for none; by default 2,048 and, to be more
        than the prototypes, 3,840 from 100,000 images on."""
        queue_from: float = 0.15
        """Share of the training after which the queue is used: before, its vectors are of another network."""
        freeze: float = 0.02
        """Share of the training over which the prototypes stay as they are."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            many = facts.images >= 100_000
            return replace(
                super().fit_to(facts),
                prototypes=self.prototypes or (3000 if many else 512),
                queue=(3840 if many else 2048) if self.queue is None else self.queue,
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config = config
        self.head = mlp(backbone.dim, config.hidden, config.projection)
        count = config.prototypes or 512
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, config.projection), dim=1))
        earlier = 2048 if config.queue is None else config.queue
        self.queue = Queue(earlier, config.projection) if earlier else None

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss over all pairs of a large view and another (equations 1 and 2)."""
        config, features = self.config, self.features(batch)
        z = unit(self.head(features.flatten(0, 1)))  # (V · B, D)
        prototypes = F.normalize(self.prototypes, dim=1)
        if progress < config.freeze:  # a gradient of zero, not none: DistributedDataParallel waits for each
            prototypes = prototypes.detach() + 0 * prototypes
        scores = cosines(z, prototypes).view(*features.shape[:2], -1)  # (V, B, K)
        with torch.no_grad():
            codes = torch.stack([self.assigned(view, prototypes, progress) for view in scores[:2]])  # (2, B, K)
        if self.queue is not None:
            self.queue.push(z[: len(batch.images)])
        loss = dino_loss(scores, codes, config.temperature)
        return {"loss": loss, "chance": torch.tensor(math.log(len(prototypes)))}

    def assigned(self, scores: Tensor, prototypes: Tensor, progress: float) -> Tensor:
        """Return the codes (B, K) of a view's cosines (B, K), evenly spread together with those of the queue."""
        if self.queue is None or progress < self.config.queue_from:
            return sinkhorn(scores / self.config.epsilon, self.config.rounds)
        share = cosines(self.queue.share(), prototypes)  # each process brings its part of the queue
        both = torch.cat([scores, share]) / self.config.epsilon
        return sinkhorn(both, self.config.rounds)[: len(scores)]
