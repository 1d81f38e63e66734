"""Masks: which part of an image is hidden, in shapes as in "Context Encoders" (2016), and a fill that knows nothing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.data.augment import uniform
from selfsight.nn import gather


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


class Blend(nn.Module):
    """Between a smooth fill and a network's answer, by how deep in the hidden part a pixel is."""

    trust: Tensor
    """(4,): the share of the answer in the blend is linear in `depths`, and between 0 and 1."""
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trust", torch.zeros(4))
        self.register_buffer("sums", torch.zeros(4, 5))

    @torch.no_grad()
    def forward(self, answer: Tensor, smooth: Tensor, hidden: Tensor) -> Tensor:
        """Return the blend of `answer` and `smooth` (B, C, S, S); `hidden` (B, 1, S, S)."""
        trust = (self.trust[:, None, None] * depths(hidden)).sum(1, keepdim=True).clamp(0, 1)  # (B, 1, S, S)
        return smooth + trust * (answer - smooth)

    @torch.no_grad()
    def learn(self, answer: Tensor, smooth: Tensor, truth: Tensor, hidden: Tensor) -> None:
        """Fit the trust to the truth by least squares, over all processes and the last ten or so batches."""
        depth, apart = depths(hidden), hidden * (answer - smooth)
        squared = apart.square().sum(1, keepdim=True)
        wanted = (apart * (truth - smooth)).sum(1, keepdim=True)
        columns = torch.cat([depth * squared, wanted], 1)[:, None] * depth[:, :, None]  # (B, 4, 5, S, S)
        self.sums.lerp_(gather(columns.mean((0, 3, 4))[None]).mean(0), 0.1)
        left, right = self.sums.split_with_sizes([4, 1], 1)  # the normal equations, kept from being singular
        ridge = 1e-3 * left.diagonal().mean() * torch.eye(4, device=left.device)
        self.trust.copy_(torch.linalg.solve_ex(left + ridge, right)[0][:, 0])


def depths(hidden: Tensor) -> Tensor:
    """Return how deep in the hidden part (B, 1, S, S) each pixel is: 1, and three hidden shares around, (B, 4, S, S).

    The shares are of squares of a 16th, an 8th and a quarter of the side, between them interpolated.
    """
    inside, size = hidden.float(), hidden.shape[-2:]
    shares = [F.interpolate(F.adaptive_avg_pool2d(inside, n), size, mode="bilinear") for n in (16, 8, 4)]
    return torch.cat([torch.ones_like(inside), *shares], 1)


def error_weight(hidden: Tensor, overlap: int) -> Tensor:
    """Return each pixel's weight: 1 where `hidden` (B, 1, S, S), 10 where seen up to `overlap` pixels from it, else 0.

    Context encoders' centre answers reach 7 of 227 pixels into the context, where errors count ten times (section 5.1).
    """
    inside = hidden.float()
    return 10 * F.max_pool2d(inside, 2 * overlap + 1, stride=1, padding=overlap) - 9 * inside
