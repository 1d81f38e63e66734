"""Rotation: tell by how many quarter turns an image was rotated.

Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import View, rotate90, whole
from selfsight.data.images import Batch
from selfsight.methods.method import Method
from selfsight.optim import Optim


class Rotation(Method):
    """Geometric: recognize by how many quarter turns an image was rotated."""

    paper = "Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, 2018"
    optim = Optim("muon", lr=8e-3, weight_decay=0.05, momentum=0.95, warmup=0.05)
    batch_size = 128  # in four rotations each

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Rotation's hyperparameters."""

        crop_min: float = 0.35
        """Smallest crop as a share of the image; larger crops make the task too easy to learn much from."""
        hflip: float = 0.5
        """Probability of a left-right flip, always before the rotation: after it, 90° and 270° would be the same."""
        jitter: float = 0.2
        """Strength of brightness and contrast jitter."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        spec = backbone.spec
        self.view = View(
            spec.image_size,
            scale=(config.crop_min, 1.0),
            hflip=config.hflip,
            brightness=config.jitter,
            contrast=config.jitter,
        )
        self.head = nn.Linear(backbone.dim, 4)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the cross entropy of the four rotations of each image."""
        x, turns = four_rotations(self.view(batch))  # (4B, C, S, S), (4B,)
        logits = self.head(self.backbone(x)).float()  # (4B, 4)
        accuracy = (logits.detach().argmax(1) == turns).float().mean()
        return {"loss": F.cross_entropy(logits, turns), "accuracy": accuracy, "chance": torch.tensor(math.log(4))}

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show ten images, each in a rotation that it must recognize, and again turned back by what it answered."""
        images = whole(batch, self.view.size)[:10]
        turns = torch.arange(len(images)) % 4
        rotated = rotate90(images, turns)
        answered = self.head(self.backbone(rotated)).argmax(1).cpu()
        rows = torch.stack([rotated, rotate90(rotated, -answered % 4)])
        right = int((answered == turns).sum())
        return {f"Above: rotated; below: turned back as it answered ({right} of {len(turns)} right)": rows}


def four_rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return all four rotations of each image, (4B, C, S, S), and by how many quarter turns each, (4B,)."""
    turns = torch.arange(4).repeat_interleave(len(x))
    return rotate90(x.repeat(4, 1, 1, 1), turns), turns.to(x.device)
