"""Masks: which part of each image is hidden, for methods that fill it in. Shapes as in "Context Encoders" (2016)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.data.augment import uniform


def centre_block(size: int, share: float) -> Tensor:
    """Return (1, 1, size, size) bool: the middle square of about this share of the image (section 3.3)."""
    side = max(1, round(size * math.sqrt(share)))
    start = (size - side) // 2
    return F.pad(torch.ones(1, 1, side, side, dtype=torch.bool), (start, size - side - start) * 2)


def random_regions(n: int, size: int, share: float, grain: int, device: torch.device) -> Tensor:
    """Return (n, 1, size, size) bool: random smooth shapes, together round(share · size²) pixels of each image.

    As in the authors' code, the lowest part of noise with one value each `grain` pixels, enlarged (bicubic); in section
    3.3 they are deformed segmentation masks of another data set. Every pixel is hidden equally often.
    """
    cells = -(-size // grain) + 2
    noise = uniform(n * cells * cells, 0, 1).view(n, 1, cells, cells).to(device, non_blocking=True)
    field = F.interpolate(noise, size=cells * grain, mode="bicubic")
    # A random window of it, or the noise's grid would show: one for the batch, so the same in all processes.
    top, left = (grain // 2 + torch.randint(grain, (2,))).tolist()
    field = field[..., top : top + size, left : left + size].flatten(1)  # (n, size²)
    lowest = field.topk(max(1, round(share * size * size)), largest=False, sorted=False).indices
    return torch.zeros_like(field, dtype=torch.bool).scatter_(1, lowest, True).view(n, 1, size, size)
