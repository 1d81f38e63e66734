"""Jigsaw: tell in which of P orders the nine tiles of an image were laid out.

Noroozi, Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone, check
from selfsight.data.augment import View, uniform, whole
from selfsight.data.images import Batch
from selfsight.data.permutations import permutation_set
from selfsight.errors import SelfsightError
from selfsight.methods.method import Method
from selfsight.nn import mlp
from selfsight.optim import Optim


class Jigsaw(Method):
    """Geometric: put the nine shuffled tiles of an image back in order."""

    paper = "Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, 2016"
    optim = Optim("adamw", lr=4e-3, weight_decay=0.05, warmup=0.05)
    batch_size = 64  # of nine tiles each

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Jigsaw's hyperparameters."""

        permutations: int = 100
        """Number of orders to tell apart, P; the paper's largest set has 1000."""
        puzzles: int = 16
        """Orders drawn for an image in a step; the backbone sees each tile once, so more of them cost little."""
        gap: float = 11 / 75
        """Share of a cell's side that its tile leaves free, at random on either side: the mean gap between tiles."""
        crop_min: float = 0.5
        """Smallest crop that is made a puzzle, as a share of the image."""
        hflip: float = 0.5
        """Probability of a left-right flip of the image; 0 where left and right mean something, as in text."""
        grey: float = 0.3
        """Probability of a grey puzzle."""
        hidden: int = 1024
        """Width of the classifier's hidden layer; a tile's head has a quarter of it."""

        def __post_init__(self) -> None:
            if not 0 < self.gap < 1:
                raise SelfsightError(f"gap {self.gap}: must lie between 0 and 1")

    permutations: Tensor

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.puzzles = config.puzzles
        # As large as in the view, in whole steps of the backbone: what lies between costs as much as the next one.
        steps = round(backbone.spec.image_size / 3 * (1 - config.gap) / backbone.reduction)
        self.tile = max(1, steps) * backbone.reduction
        check(backbone, small=self.tile, remedy="another method")
        self.cell = math.ceil(self.tile / (1 - config.gap))
        # Grey, as colours give a tile's place away: a lens's fringes grow towards the corners.
        grey = config.grey if backbone.spec.channels == 3 else 0.0
        self.view = View(3 * self.cell, (config.crop_min, 1.0), hflip=config.hflip, grey=grey)
        width = config.hidden // 4
        self.head = nn.Sequential(nn.Linear(backbone.dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.classifier = mlp(9 * width, config.hidden, config.permutations)
        # A buffer, so that a checkpoint's classes keep their meaning.
        self.register_buffer("permutations", permutation_set(config.permutations).clone())

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the cross entropy of several puzzles of each image."""
        tiles, labels = self.draw(batch)
        logits, labels = self.answer(tiles, labels).flatten(0, 1), labels.flatten()  # (B · puzzles, P), (B · puzzles,)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        chance = torch.tensor(math.log(len(self.permutations)))
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy, "chance": chance}

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each image's tiles (B, 9, C, t, t) in [0, 1], in reading order, and its puzzles' labels (B, puzzles).

        A label is a row of `permutations`.
        """
        n, free, last = len(batch.images), self.cell - self.tile, len(self.permutations) - 1
        view = self.view(batch)  # (B, C, 3 · cell, 3 · cell)
        # Gap and jitter, as else lines that run on over a tile's edge give its neighbour away.
        offsets = uniform(n * 18, 0, free + 1).long().clamp(max=free).view(n, 2, 9)
        # Many orders of an image, as else the network could learn by heart where in it a tile was.
        labels = uniform(n * self.puzzles, 0, last + 1).long().clamp(max=last).view(n, self.puzzles)
        return cut(view, offsets[:, 0], offsets[:, 1], self.tile), labels.to(view.device)

    def answer(self, tiles: Tensor, labels: Tensor) -> Tensor:
        """Return logits (B, puzzles, P) for tiles (B, 9, C, t, t), laid out in the orders of `labels` (B, puzzles)."""
        # Each tile by itself, as else neighbours show by their brightness. Then the opposite of what the backbone does
        # to its input, the normalization by the whole data's mean and deviation.
        x = normalize(tiles.flatten(0, 1)) * self.backbone.std + self.backbone.mean  # (9B, C, t, t)
        z = self.head(self.backbone(x)).view(len(tiles), 9, -1)  # (B, 9, D)
        image = torch.arange(len(z), device=z.device)[:, None, None]
        shuffled = z[image, self.permutations[labels]]  # (B, puzzles, 9, D)
        logits: Tensor = self.classifier(shuffled.flatten(0, 1).flatten(1)).float()
        return logits.view(*labels.shape, -1)

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show ten images as shuffled tiles, and again as it put them in order."""
        images = whole(batch, self.view.size)[:10]
        n, device = len(images), images.device
        middle = torch.full((n, 9), (self.cell - self.tile) // 2)
        tiles = cut(images, middle, middle, self.tile)
        labels = torch.arange(n, device=device) * len(self.permutations) // n
        answered = self.answer(tiles, labels[:, None])[:, 0].argmax(1)
        image = torch.arange(n, device=device)[:, None]
        shuffled = tiles[image, self.permutations[labels]]
        solved = shuffled[image, self.permutations[answered].argsort(1)]  # each tile where it was thought to belong
        rows = torch.stack([board(shuffled, self.cell), board(solved, self.cell)])
        right = int((answered == labels).sum())
        return {f"Above: the puzzle; below: as it was solved ({right} of {n} right)": rows}


def cut(x: Tensor, top: Tensor, left: Tensor, tile: int) -> Tensor:
    """Return a part of each cell of x (B, C, S, S), a third by a third: (B, 9, C, tile, tile), in reading order.

    `top` and `left` (B, 9): where in its cell it begins, in pixels.
    """
    cell, place, step = x.shape[2] // 3, torch.arange(9), torch.arange(tile)
    rows = ((place // 3 * cell + top)[:, :, None] + step).to(x.device)  # (B, 9, tile)
    columns = ((place % 3 * cell + left)[:, :, None] + step).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    tiles = x.permute(0, 2, 3, 1)[image, rows[:, :, :, None], columns[:, :, None]]  # (B, 9, tile, tile, C)
    return tiles.permute(0, 1, 4, 2, 3)


def normalize(tiles: Tensor) -> Tensor:
    """Return (N, C, t, t) with mean 0 and deviation 1 in each channel of each tile; a blank one is 0."""
    centred = tiles - tiles.mean((2, 3), keepdim=True)
    # 0.02 is far below an image's contrast, and above the noise of a plain wall.
    return centred / (centred.square().mean((2, 3), keepdim=True) + 0.02**2).sqrt()


def board(tiles: Tensor, cell: int) -> Tensor:
    """Return images (B, C, 3 · cell, 3 · cell) of the tiles (B, 9, C, t, t), on grey."""
    n, free = len(tiles), cell - tiles.shape[-1]
    before, after = free // 2, free - free // 2
    cells = F.pad(tiles, (before, after, before, after), value=0.5).view(n, 3, 3, -1, cell, cell)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, 3 * cell, 3 * cell)
