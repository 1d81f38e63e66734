"""The interface of a pretext task: a module that turns a batch of unlabeled images into a loss."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.optim import Optim


@dataclass(frozen=True)
class Facts:
    """What a method may know of the data and the budget when it scales its defaults."""

    images: int
    """Number of training images."""
    image_size: int
    """Side of a view in pixels."""
    channels: int
    """1 grey, 3 colour, more for satellite bands."""
    rows: int = 0
    """Number of all images of the data set, those held out for tests too: one more than the largest Batch.index."""

    @property
    def grown(self) -> float:
        """0 up to 100,000 images, 1 from ImageNet's 12.8 times as many on; between them by the logarithm."""
        return min(math.log(max(self.images / 100_000, 1), 12.8), 1)


class Method(nn.Module):
    """A pretext task. It draws its own views, on the device.

    A subclass lives in a file of its own, `methods/<name>.py`, as the file's only Method; its docstring's first line
    and `paper` are what `selfsight methods` prints. `progress` runs from 0 to 1 over training, so that no method counts
    steps or epochs.
    """

    @dataclass(frozen=True)
    class Config:
        """Hyperparameters, each with a docstring that is also its help text."""

        def fit_to(self, facts: Facts) -> Self:
            """Return the config with each None filled in by what suits this data."""
            return self

    paper: ClassVar[str]
    """Authors, title, year."""
    optim: ClassVar[Optim]
    """The optimizer that this method is known to train with."""
    batch_size: ClassVar[int] = 256
    """Images a step that it is known to train with."""
    vit: ClassVar[bool] = False
    """Whether it hides patches from a ViT, and so can train nothing else."""
    supervised: ClassVar[bool] = False
    """Whether the loss sees labels."""
    mean_tokens: ClassVar[bool] = False
    """Whether a ViT's features are to be the mean of its patches, since little or nothing trains its class token."""

    directions: ClassVar[bool] = True
    """Whether the loss sees the directions of `projections` alone, and not how long they are."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return 'loss', scalars worth a curve, and 'chance': the loss of a network that knows nothing."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Move a teacher, fill a queue; called after each optimizer step."""

    def encoder(self) -> Backbone:
        """Return what is kept when training ends."""
        return self.backbone

    def projections(self, features: Tensor) -> Tensor | None:
        """Return what the loss compares of images, (N, D), by the encoder's features (N, dim) of them.

        None if it compares nothing, as where something is to be predicted or drawn. A collapse begins here: features
        may still differ when what a projector makes of them does not.
        """
        return None

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Return what it saw and answered: by caption, images (rows, up to 10, C, S, S) in [0, 1]; or none."""
        return {}
