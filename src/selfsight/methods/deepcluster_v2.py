"""DeepCluster v2: say to which cluster of the last pass's embeddings an image belongs, by any of its views.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020, appendix; after Caron et al., Deep Clustering for Unsupervised Learning of Visual Features,
ECCV 2018.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.distillation import sinkhorn
from selfsight.methods.method import Facts
from selfsight.methods.two_views import MultiCrop
from selfsight.nn import cosines, gather, mlp, unit
from selfsight.optim import Optim

PIECE = 2**16
"""Images that are compared with the centres at once."""


class DeepClusterV2(MultiCrop):
    """Clustering: spherical k-means over all embeddings at each pass, whose clusters all views must name."""

    paper = "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, 2020"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    batch_size = 64  # in several views each
    seen = "two large views and a small one, all of which must name the image's cluster"

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """DeepCluster's hyperparameters."""

        prototypes: int | None = None
        """Clusters; by default the paper's 3000, and 512 below 100,000 images; a quarter of these at most."""
        clusterings: int = 3
        """Independent clusterings, all of which must be named."""
        rounds: int = 10
        """Rounds of k-means."""
        hidden: int = 2048
        """Width of the projector's hidden layer."""
        projection: int = 128
        """Length of the unit vectors that are clustered."""
        temperature: float = 0.1
        """Divides the cosines with the clusters' centres."""
        epsilon: float = 0.05
        """Divides the cosines where the first pass deals images out: the lower, the fewer clusters share an image."""
        memory: int | None = None
        """Embeddings that are kept, one an image; by default as many as the data set has images."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            count = self.prototypes or (3000 if facts.images >= 100_000 else 512)
            memory = self.memory or max(facts.rows, facts.images)
            return replace(super().fit_to(facts), prototypes=min(count, memory // 4 or 1), memory=memory)

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config = config
        count, size, heads = config.prototypes or 512, config.memory or 1, config.clusterings
        self.head = mlp(backbone.dim, config.hidden, config.projection)
        self.register_buffer("centres", F.normalize(torch.randn(heads, count, config.projection), dim=2))
        self.register_buffer("embeddings", torch.zeros(size, config.projection))  # zero: not seen yet
        self.register_buffer("clusters", torch.full((heads, size), -1))
        self.register_buffer("seen_since", torch.zeros((), dtype=torch.long))
        self.centres: Tensor
        self.embeddings: Tensor
        self.clusters: Tensor
        self.seen_since: Tensor

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the mean cross entropy of all views' clusters, over all clusterings.

        The paper embeds all images before it trains. Here the first pass trains already, on clusters that Sinkhorn
        deals out within the batch.
        """
        features = self.features(batch)
        z = unit(self.head(features.flatten(0, 1)))  # (V · B, D)
        views = len(features)
        losses = []
        for centres, clusters in zip(self.centres, self.clusters, strict=True):
            scores = cosines(z, centres)  # (V · B, K)
            known = clusters[batch.index]
            if bool((gather(known) < 0).any()):  # all processes deal, or none
                known = torch.where(known < 0, self.deal(scores.detach()[: len(known)]), known)
            losses.append(F.cross_entropy(scores / self.config.temperature, known.repeat(views)))
        index = gather(batch.index)
        self.embeddings.index_copy_(0, index, gather(z.detach()[: len(batch.index)]))
        self.seen_since += len(index)
        chance = math.log(self.centres.shape[1])
        return {"loss": torch.stack(losses).mean(), "chance": torch.tensor(chance)}

    def deal(self, scores: Tensor) -> Tensor:
        """Return clusters (B,) for images that have none yet, by cosines (B, K): all clusters get as many of them."""
        return sinkhorn(scores / self.config.epsilon).argmax(1)

    def after_step(self, progress: float) -> None:
        """Cluster all embeddings anew after each pass over the images."""
        seen = self.embeddings.any(1)
        if int(self.seen_since) < int(seen.sum()):
            return
        self.seen_since.zero_()
        known = self.embeddings[seen]
        for clustering in range(len(self.centres)):
            centres = known[torch.randperm(len(known), device="cpu")[: self.centres.shape[1]].to(known.device)]
            if len(centres) < self.centres.shape[1]:
                return  # fewer images than clusters so far
            for _ in range(self.config.rounds):
                centres = means(known, closest(known, centres), centres)
            self.centres[clustering] = centres
            self.clusters[clustering, seen] = closest(known, centres)


def closest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return which of the unit centres (K, D) is closest to each unit vector (N, D): (N,), in pieces.

    All cosines at once would take 15 GB with ImageNet's images and 3,000 clusters.
    """
    return torch.cat([cosines(some, centres).argmax(1) for some in torch.split(vectors, PIECE)])


def means(vectors: Tensor, cluster: Tensor, before: Tensor) -> Tensor:
    """Return the unit mean (K, D) of each cluster's unit vectors (N, D); an empty one stays where it was."""
    sums = torch.zeros_like(before).index_add(0, cluster, vectors)
    empty = torch.bincount(cluster, minlength=len(before)) == 0
    return F.normalize(torch.where(empty[:, None], before, sums), dim=1)
