"""Rotation: tell by how many quarter turns an image was rotated, and if it was mirrored before.

Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import View, rotate90, uniform, whole
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts, Method
from selfsight.optim import Optim


class Rotation(Method):
    """Geometric: recognize by how many quarter turns an image was rotated, if asked also whether it was mirrored."""

    paper = "Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, 2018"
    optim = Optim("muon", lr=8e-3, weight_decay=0.05, momentum=0.95, warmup=0.05)
    batch_size = 128  # in four rotations each

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Rotation's hyperparameters."""

        family: Literal["rotations", "dihedral"] = "rotations"
        """What to recognize: the 4 rotations, the paper's; or all 8 symmetries of the square, these and their mirror
        images, where left and right mean something, as in text: a mirrored photo is mostly as good as any."""
        crop_min: float = 0.35
        """Smallest crop as a share of the image; larger crops make the task too easy to learn much from."""
        hflip: float | None = None
        """Probability of a left-right flip, always before the rotation: after it, 90° and 270° would be the same; by
        default 0.5, and 0 with dihedral, where it is part of the answer."""
        jitter: float = 0.2
        """Strength of brightness and contrast jitter."""

        def __post_init__(self) -> None:
            if self.family == "dihedral" and self.hflip:
                raise SelfsightError(f"hflip {self.hflip}: must be 0 with family dihedral, which asks for flips")

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the family."""
            hflip = 0.0 if self.family == "dihedral" else 0.5
            return replace(self, hflip=hflip if self.hflip is None else self.hflip)

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        spec = backbone.spec
        config = config.fit_to(Facts(0, spec.image_size, spec.channels))
        assert config.hflip is not None
        self.mirrors = config.family == "dihedral"
        self.view = View(
            spec.image_size,
            scale=(config.crop_min, 1.0),
            hflip=config.hflip,
            brightness=config.jitter,
            contrast=config.jitter,
        )
        self.head = nn.Linear(backbone.dim, 8 if self.mirrors else 4)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the cross entropy of the transform that each image is seen in, in all four rotations each."""
        x, element = self.view(batch).repeat(4, 1, 1, 1), draw(len(batch.images), self.mirrors)  # (4B, C, S, S), (4B,)
        logits, label = self.head(self.backbone(transform(x, element))).float(), element.to(x.device)  # (4B, 4 or 8)
        accuracy = (logits.detach().argmax(1) == label).float().mean()
        chance = torch.tensor(math.log(logits.shape[1]))
        return {"loss": F.cross_entropy(logits, label), "accuracy": accuracy, "chance": chance}

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show ten images, each in a transform that it must recognize, and again with what it answered undone."""
        images = whole(batch, self.view.size)[:10]
        element = torch.arange(len(images)) % self.head.out_features
        seen = transform(images, element)
        answered = self.head(self.backbone(seen)).argmax(1).cpu()
        right = int((answered == element).sum())
        done, undone = ("rotated, some mirrored", "put back") if self.mirrors else ("rotated", "turned back")
        caption = f"Above: {done}; below: {undone} as it answered ({right} of {len(element)} right)"
        return {caption: torch.stack([seen, transform(seen, inverse(answered))])}


def draw(n: int, mirrors: bool) -> Tensor:
    """Return the transforms (4n,) of n images, as `transform` numbers them: all four rotations of the first ones first.

    With `mirrors` a coin decides for each whether it is the plain or the mirrored one: all eight would cost twice as
    much for the same images. Each is as frequent as any other, whatever the image.
    """
    turns = torch.arange(4).repeat_interleave(n)
    if not mirrors:
        return turns
    return turns + 4 * (uniform(4 * n, 0, 1).view(n, 4).T.flatten() < 0.5)


def transform(x: Tensor, element: Tensor) -> Tensor:
    """Return images (B, C, S, S) in these of the square's 8 symmetries (B,); lossless.

    0 to 3 are quarter turns counter-clockwise, 4 to 7 the same of the mirror image: flips come before rotations.
    """
    if bool((element >= 4).any()):
        x = torch.where((element >= 4).to(x.device)[:, None, None, None], x.flip(3), x)
    return rotate90(x, element % 4)


def inverse(element: Tensor) -> Tensor:
    """Return the symmetries that undo these: the opposite turn, while one with a flip undoes itself."""
    return torch.where(element < 4, -element % 4, element)
