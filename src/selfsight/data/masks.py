"""Masks: which part of an image is hidden, in shapes as in "Context Encoders" (2016), and a fill that knows nothing."""

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


def smooth_fill(x: Tensor, hidden: Tensor, sweeps: int = 1) -> Tensor:
    """Return images (B, C, S, S) with the part `hidden` (B, 1, S, S) filled in smoothly from the visible pixels around.

    Nearly the harmonic function, in which each hidden pixel is the mean of its neighbours. From coarse to fine: first
    in images of half the side, made of the means of visible pixels, then by a few sweeps over the pixels themselves;
    the coarser, the more, as they cost less.
    """
    if x.shape[-1] == 1:
        return x
    seen = (~hidden).to(x.dtype)
    share = F.avg_pool2d(seen, 2, ceil_mode=True)  # of each 2 x 2 pixels that is visible
    coarse = F.avg_pool2d(x * seen, 2, ceil_mode=True) / share.clamp(min=1e-6)
    guess = F.interpolate(smooth_fill(coarse, share == 0, 2 * sweeps), size=x.shape[-2:], mode="bilinear")
    filled = torch.where(hidden, guess, x)
    for _ in range(sweeps):
        filled = torch.where(hidden, F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False), x)
    return filled
