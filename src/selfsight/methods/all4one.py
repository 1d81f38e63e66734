"""All4One: NNCLR, with a whole neighbourhood summed up by self-attention as well, and features that don't repeat.

Estepa, Sarasúa, Nagarajan, Bilbao: All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention and Redundancy
Reduction, ICCV 2023.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.methods.nnclr import NNCLR
from selfsight.nn import Teacher, cosines, exact, find, gather, mlp, unit


class All4One(NNCLR):
    """Contrastive: a neighbour, a neighbourhood summed up by self-attention, and uncorrelated features, all three."""

    paper = "Estepa et al., All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention, 2023"
    seen = "two views; the neighbourhood of one among earlier images must find the other"

    @dataclass(frozen=True)
    class Config(NNCLR.Config):
        """NNCLR's hyperparameters, and those of the neighbourhoods."""

        neighbours: int = 5
        """Nearest earlier images that self-attention sums up."""
        depth: int = 3
        """Layers of self-attention."""
        momentum: float = 0.99
        """The teacher's at the start, 1 at the end; less in trainings of under 2,000 steps."""
        weights: tuple[float, float, float] = (0.5, 0.5, 5.0)
        """Weights of the neighbour's loss, the neighbourhood's, and that of the features (section 4)."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.all4one, dim = config, config.projection
        self.teacher = Teacher(nn.Sequential(backbone, self.head))
        self.first = mlp(dim, config.bottleneck, dim)  # a predictor of the view that stands first in a neighbourhood
        layer = nn.TransformerEncoderLayer(dim, 8, 2 * dim, batch_first=True)
        self.attention = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        place = build_sincos2d_pos_embed([config.neighbours, 1], dim)
        self.register_buffer("place", place, persistent=False)
        self.place: Tensor

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the weighted sum of the three losses, each symmetric in the views (equation 9), and each alone."""
        config, x = self.all4one, self.draw(batch)  # (2B, C, S, S)
        z = self.head(self.backbone(x))  # (2B, D)
        keys = unit(self.teacher(x))
        places = cosines(keys, self.queue.rows).topk(config.neighbours, dim=1).indices
        near = self.queue.rows[places]  # (2B, M, D), the nearest first
        predicted = unit(self.predictor(z)).chunk(2)
        nearest = near[:, 0].chunk(2)
        shifted = torch.cat([exact(self.first(z))[:, None], near[:, :-1]], 1)  # the view itself, then its neighbours
        summed = unit(self.attention(torch.cat([near, shifted]) + self.place)[:, 0])
        theirs, own = (half.chunk(2) for half in summed.chunk(2))  # of each view (B, D)
        pairs = ((0, 1), (1, 0))
        neighbour = sum(find(nearest[i], gather(predicted[j]), self.temperature) for i, j in pairs) / 2
        neighbourhood = sum(find(theirs[i], gather(own[j]), self.temperature) for i, j in pairs) / 2
        (k1, k2), (z1, z2) = (map(gather, vectors.chunk(2)) for vectors in (keys, exact(z)))
        features = redundancy(k1, z2, k2, z1)
        self.queue.push(keys[: len(batch.images)])
        terms = neighbour, neighbourhood, features
        loss = sum(weight * term for weight, term in zip(config.weights, terms, strict=True))
        names = ("neighbour", "neighbourhood", "features")
        alone = {name: torch.as_tensor(term).detach() for name, term in zip(names, terms, strict=True)}
        return {"loss": torch.as_tensor(loss)} | alone

    def after_step(self, progress: float) -> None:
        """Move the teacher, less and less."""
        self.teacher.follow(nn.Sequential(self.backbone, self.head), self.all4one.momentum, progress)


def redundancy(key1: Tensor, z2: Tensor, key2: Tensor, z1: Tensor) -> Tensor:
    """Return how far the cosines of features of (N, D) are from 1 with the same of the other view, from 0 with others.

    The mean of the root mean squares of both, over the pairs key1, z2 and key2, z1 (equations 7 and 8).
    """
    same, different = [], []
    for key, z in ((key1, z2), (key2, z1)):
        alike = F.normalize(key, dim=0).T @ F.normalize(z, dim=0)  # (D, D)
        d = len(alike)
        same.append((alike.diagonal() - 1).square().mean())
        different.append((alike.square().sum() - alike.diagonal().square().sum()) / (d * (d - 1)))
    return (torch.stack(same).mean().sqrt() + torch.stack(different).mean().sqrt()) / 2
