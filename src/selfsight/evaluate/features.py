"""Features of images for the protocols: a backbone's embeddings, and the raw pixels to compare them with."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from selfsight.backbones import Backbone, quick_on_cpu
from selfsight.data.augment import whole
from selfsight.data.images import ImageSet
from selfsight.data.loader import in_order
from selfsight.memory import tune_allocator
from selfsight.nn import autocast
from selfsight.progress import bar

MOST_PIXELS = 3072
"""Raw pixels are scaled down until an image has at most this many values, 32 x 32 in colour."""


@contextmanager
def evaluating(module: nn.Module, side: int | None = None) -> Iterator[None]:
    """Put a module in eval mode without gradients for the block; afterwards each part trains or not as before.

    `side` is that of its images in pixels, by default that of a backbone's own.
    """
    before = {part: part.training for part in module.modules()}
    device = next((weights.device for weights in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        with torch.inference_mode(), quick_on_cpu(module, device, side):
            yield
    finally:
        for part, training in before.items():
            part.training = training


def extract(
    backbone: Backbone,
    images: ImageSet,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """Return the features (len(rows), dim) of the centre views of these rows."""
    return answers(backbone, backbone.spec.image_size, images, rows, device=device, batch_size=batch_size)


def answers(
    module: nn.Module,
    size: int,
    images: ImageSet,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 256,
    name: str = "embed",
) -> NDArray[np.float32]:
    """Return what `module` makes (len(rows), D) of the centre views (B, C, size, size) of these rows.

    Raises ValueError without rows.
    """
    if not len(rows):
        raise ValueError("no rows to embed")
    found = answers_by_batch(module, size, images, rows, device=device, batch_size=batch_size, name=name)
    return np.concatenate(list(found))


def answers_by_batch(
    module: nn.Module,
    size: int,
    images: ImageSet,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 256,
    name: str = "embed",
) -> Iterator[NDArray[np.float32]]:
    """Yield what `answers` returns, (up to batch_size, D) at a time, while a bar shows the progress."""
    tune_allocator()
    with evaluating(module), autocast(device), bar(transient=True) as progress:
        task = progress.add_task(name, total=len(rows), unit="images", note="")
        for batch in in_order(images, rows, batch_size, device):
            part = module(whole(batch, size)).float().cpu().numpy()
            progress.advance(task, len(part))
            yield part


def pixels(images: ImageSet, rows: NDArray[np.int64], size: int, batch_size: int = 1024) -> NDArray[np.float32]:
    """Return the pixels of the centre views of these rows, flat: (len(rows), channels · side²).

    The side is the backbone's image `size`, or the largest of 32, 16, 8, ... with at most MOST_PIXELS values in all.
    """
    while images.channels * size * size > MOST_PIXELS and size > 1:
        size = 32 if size > 32 else size // 2
    flat = nn.Flatten()
    return answers(flat, size, images, rows, device=torch.device("cpu"), batch_size=batch_size, name="pixels")
