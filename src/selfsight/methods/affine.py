"""Affine: from two views of an image, tell by which turn, zoom and shear one became the other.

Zhang, Qi, Wang, Luo: AET vs. AED: Unsupervised Representation Learning by Auto-Encoding Transformations rather than
Data, CVPR 2019. There the parameters are regressed; here, as rotations in Gidaris et al. 2018, they are classified.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View, uniform, warp, whole
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods.method import Method
from selfsight.nn import mlp
from selfsight.optim import Optim


class Affine(Method):
    """Geometric: tell by how much an image was turned, zoomed and sheared."""

    paper = "Zhang et al., AET vs. AED: Unsupervised Representation Learning by Auto-Encoding Transformations, 2019"
    optim = Optim("muon", lr=4e-3, weight_decay=0.05, momentum=0.95, warmup=0.05)
    batch_size = 128  # in four views each

    @dataclass(frozen=True)
    class Config(Method.Config):
        """The method's hyperparameters."""

        turn: float = 180.0
        """Largest turn to either side, in degrees."""
        zoom: float = 1.2
        """Largest zoom in or out, above 1."""
        shear: float = 0.2
        """Largest shear to either side: the tangent of the angle by which upright lines lean."""
        bins: tuple[int, int, int] = (15, 5, 5)
        """Classes of turn, zoom and shear, of equal width; odd, so that no change is the middle of one."""
        transforms: int = 3
        """Transformed views an image, beside the one that they are compared with."""
        hidden: int = 512
        """Width of the hidden layer that compares two views."""
        crop_min: float = 0.7
        """Smallest crop as a share of the image; of it a view shows the middle, by default two sevenths of the crop."""
        hflip: float = 0.5
        """Probability of a left-right flip, before the transform; 0 where left and right mean something, as in text."""
        jitter: float = 0.2
        """Strength of brightness and contrast jitter."""

        def __post_init__(self) -> None:
            if not (0 < self.turn <= 180 and self.zoom > 1 and self.shear > 0 and min(self.bins) > 1):
                raise SelfsightError(
                    f"turn {self.turn:g}, zoom {self.zoom:g}, shear {self.shear:g}, bins {self.bins}: turn must lie "
                    "between 0 and 180, zoom above 1, shear above 0, bins above 1"
                )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config, self.size = config, backbone.spec.image_size
        # The largest transform still looks at the crop only: no border that would show by how much a view was turned.
        area = math.ceil(self.size * reach(config))
        jitter = config.jitter
        self.view = View(area, (config.crop_min, 1.0), hflip=config.hflip, brightness=jitter, contrast=jitter)
        self.head = mlp(2 * backbone.dim, config.hidden, sum(config.bins))

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the sum of the cross entropies of turn, zoom and shear, and the share of right answers to each."""
        n, count = len(batch.images), self.config.transforms
        drawn = uniform(n * count * 3, -1, 1).view(n, count, 3)
        logits = self.answer(self.transformed(self.view(batch), drawn))
        labels = binned(drawn, self.config.bins).flatten(0, 1).to(logits[0].device)  # (B · T, 3)
        pairs = list(zip(logits, labels.unbind(1), strict=True))
        right = [(answer.detach().argmax(1) == label).float().mean() for answer, label in pairs]
        return {
            "loss": torch.stack([F.cross_entropy(answer, label) for answer, label in pairs]).sum(),
            "accuracy": torch.stack(right).mean(),
            **dict(zip(("turn_accuracy", "zoom_accuracy", "shear_accuracy"), right, strict=True)),
            "chance": torch.tensor(sum(math.log(bins) for bins in self.config.bins)),
        }

    def transformed(self, area: Tensor, drawn: Tensor) -> Tensor:
        """Return the middle of each image (B, C, M, M) as it is, and in T transforms: (B, 1 + T, C, S, S)."""
        drawn = torch.cat([torch.zeros(len(drawn), 1, 3), drawn], 1)  # what is as it is was sampled like all others
        return warp(area, matrices(drawn, self.config), self.size)

    def answer(self, views: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B · T, bins) of turn, zoom and shear of all but the first of the views (B, 1 + T, C, S, S).

        As in AET the head sees both views: how large a thing is can't be told from one.
        """
        z = self.backbone(views.flatten(0, 1)).view(*views.shape[:2], -1)  # (B, 1 + T, D)
        pairs = torch.cat([z[:, :1].expand_as(z[:, 1:]), z[:, 1:]], 2).flatten(0, 1)  # (B · T, 2D)
        logits: Tensor = self.head(pairs).float()
        return logits.split_with_sizes(self.config.bins, 1)

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show ten images: as they are, transformed, and with what it answered undone."""
        area = whole(batch, self.view.size)[:10]
        # Spread evenly over all that may be drawn, the same each time (Roberts 2018, the R3 sequence).
        place = torch.arange(len(area))[:, None] * torch.tensor([0.8191725, 0.6710436, 0.5497005])
        drawn = ((place + 0.5) % 1 * 2 - 1)[:, None]  # (B, 1, 3)
        views = self.transformed(area, drawn)
        answered = torch.stack([answer.argmax(1) for answer in self.answer(views)], 1).cpu()[:, None]  # (B, 1, 3)
        bins = torch.tensor(self.config.bins)
        undo = torch.linalg.inv(matrices((2 * answered + 1) / bins - 1, self.config))
        straight = warp(area, matrices(drawn, self.config) @ undo, self.size)
        right = (answered == binned(drawn, self.config.bins)).sum((0, 1)).tolist()
        told = ", ".join(f"{name} {k}" for name, k in zip(("turn", "zoom", "shear"), right, strict=True))
        left = self.config.turn / self.config.bins[0]
        caption = (
            "Top to bottom: the middle of the image; transformed; put back as it answered, by the middle of the class "
            f"it chose, which leaves up to {left:.0f}° where it is right (right of {len(area)}: {told})"
        )
        return {caption: torch.stack([views[:, 0], views[:, 1], straight[:, 0]]).clamp(0, 1)}


def binned(drawn: Tensor, bins: tuple[int, int, int]) -> Tensor:
    """Return the bins (..., 3) that numbers (..., 3) from -1 to 1 fall into, of so many of equal width each."""
    counts = torch.tensor(bins)
    return ((drawn + 1) / 2 * counts).long().minimum(counts - 1)


def matrices(drawn: Tensor, config: Affine.Config) -> Tensor:
    """Return the maps (..., 2, 2) from a view to the image; `drawn` (..., 3): -1 to 1 of the largest turn, zoom, shear.

    R · K · zoom with R the turn and K = [[1, shear], [0, 1]]: no two triples have the same map.
    """
    turn, zoom, shear = drawn.unbind(-1)
    angle, zoom, shear = turn * math.radians(config.turn), config.zoom**zoom, shear * config.shear
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    return torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], -1).view(*turn.shape, 2, 2)


def reach(config: Affine.Config) -> float:
    """Return how far from the middle the largest transforms look, in halves of a view's side."""
    turns, shears = torch.linspace(-1, 1, 721), torch.tensor([-1.0, 1.0])
    extremes = matrices(torch.cartesian_prod(turns, torch.ones(1), shears), config)
    return float(extremes.abs().sum(-1).max())
