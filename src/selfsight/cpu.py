"""Layers computed in other ways on CPUs, where torch's kernels are slow for what is trained there; answers stay.

Small images end in maps that are hardly larger than a kernel, mobile networks are made of depthwise convolutions, and
ViTs of small images have few patches: oneDNN's kernels are made for other shapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PLACES = 9
"""Maps of up to this many places, 3 x 3, are convolved by matrix products ..."""
FEWEST = 32
"""... of this many images or more: of fewer it is the weights that take the time, which the products copy."""


class Products(nn.Conv2d):
    """A convolution that makes each place of a small map by a matrix product, without multiplying the padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (B, out_channels, h, w) of x (B, in_channels, H, W)."""
        padding = self.padding
        assert not isinstance(padding, str)
        rows, columns = (
            _windows(*sizes) for sizes in zip(x.shape[2:], self.kernel_size, self.stride, padding, strict=True)
        )
        if len(x) < FEWEST or not 0 < len(rows) * len(columns) <= MOST_PLACES:
            y: Tensor = super().forward(x)
            return y
        x, weight = x.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1)
        places = [
            F.linear(x[:, seen, across].flatten(1), weight[:, taps, along].flatten(1), self.bias)
            for seen, taps in rows
            for across, along in columns
        ]
        return torch.stack(places, 1).view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


def _windows(size: int, kernel: int, stride: int, padding: int) -> list[tuple[slice, slice]]:
    """Return what each place of the answer sees of an input of this size, and with which part of the kernel."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    seen = [(max(start, 0), min(start + kernel, size)) for start in starts]
    return [(slice(a, b), slice(a - start, b - start)) for start, (a, b) in zip(starts, seen, strict=True)]


class Exact:
    """Put before a layer's class: it is computed in float32, whatever autocast says."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's answer to x in the dtype of x."""
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = super().forward(x.float())  # type: ignore[misc]
        return y.to(x.dtype)


@cache
def _exact(kind: Any) -> type[nn.Module]:
    """Return the class of layers of this kind that compute in float32."""
    return type(f"Exact{kind.__name__}", (Exact, kind), {})


def _faster(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class that computes this layer faster, if there is one."""
    kind: Any = type(layer)
    if not isinstance(layer, nn.Conv2d) or isinstance(layer, Exact):
        return None
    if layer.groups == layer.in_channels > 1:  # in bfloat16 gradients of strided and 5 x 5 ones take 5 times as long
        return _exact(kind)
    plain = kind is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1)
    return Products if plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None


@contextmanager
def quick(module: nn.Module, device: torch.device, *, many_patches: bool) -> Iterator[None]:
    """Compute a module as is fastest on a CPU for the block; where the device is another, nothing changes.

    Convolutions that make small maps are matrix products, depthwise ones are computed in float32; a ViT's attention is
    made of matrix products instead of torch's fused kernel. That needs more memory: not so with `many_patches`.
    How much faster each is: `python benchmarks/kernels.py`.
    """
    layers: list[Any] = list(module.modules()) if device.type == "cpu" else []
    fused = [] if many_patches else [layer for layer in layers if getattr(layer, "fused_attn", False)]
    slow = [(layer, type(layer), kind) for layer in layers if (kind := _faster(layer))]
    for layer in fused:
        layer.fused_attn = False
    for layer, _, kind in slow:
        layer.__class__ = kind
    try:
        yield
    finally:
        for layer in fused:
            layer.fused_attn = True
        for layer, before, _ in slow:
            layer.__class__ = before
