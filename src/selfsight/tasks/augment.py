"""Views of an image and its boxes or mask: one for training, one for evaluation, by torchvision's v2 transforms.

Both take an image (C, H, W) uint8 and what is known of it, by name, as torchvision's tv_tensors: 'boxes', a
BoundingBoxes (n, 4) of format XYXY, with tensors (n, ...) that belong to them such as 'labels'; or 'mask', a Mask
(H, W). They return the image (C, S, S) in [0, 1] and the same names with plain tensors, boxes in pixels of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import sanitize_bounding_boxes

from selfsight.data.mask_files import IGNORE

Target = dict[str, Tensor]


@dataclass(frozen=True)
class DenseView:
    """A training view: a random scale, a random crop or place, a flip, a little colour jitter.

    Scale jitter as by Ghiasi et al. 2021, "Simple Copy-Paste", who draw from 0.1 to 2 and train for hundreds of epochs.
    """

    size: int
    """Height and width of the view in pixels."""
    mean: tuple[float, ...]
    """Mean of each channel in [0, 1], which fills what lies outside of the image; in masks 255 does."""
    scale: tuple[float, float]
    """How large the image is shown, 1 with its longer side as long as the view's."""
    hflip: bool = True
    """Mirror half of the views."""
    jitter: float = 0.4
    """Brightness, contrast and saturation of colour images are multiplied by 1 ± this, hue is turned by a quarter of it
    as a share of the circle."""
    visible: float = 0.3
    """Objects of which the view shows a smaller share of the box are no target."""

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Return a view and what it shows, drawn with torch's global generator."""
        least, most = self.scale
        scaled = _resized(image, target, self.size * (least + (most - least) * float(torch.rand(()))))
        sizes = _areas(scaled[1])
        crop = v2.RandomCrop(self.size, pad_if_needed=True, fill=_fill(self.mean))
        flip = v2.RandomHorizontalFlip(0.5 if self.hflip else 0.0)
        view, seen = flip(*crop(*scaled))
        if self.jitter and len(image) == 3:
            view = v2.ColorJitter(self.jitter, self.jitter, self.jitter, self.jitter / 4)(view)
        if "boxes" in seen:
            seen = v2.ClampBoundingBoxes()(seen)  # by a rounding error outside is outside for what follows
            enough = _areas(seen) >= self.visible * sizes
            enough &= sanitize_bounding_boxes(seen["boxes"])[1]
            seen = {name: values[enough] for name, values in seen.items()}
        return _plain(view, seen)


@dataclass(frozen=True)
class Placement:
    """Where in a square view an image of `height` x `width` pixels is: at the upper left, `shown` pixels of it."""

    height: int
    width: int
    shown: tuple[int, int]
    """Height and width in the view."""

    def boxes_back(self, boxes: Tensor) -> Tensor:
        """Return boxes (n, 4) of the view in pixels of the image: left, top, right, bottom, within its borders."""
        y, x = self.height / self.shown[0], self.width / self.shown[1]
        edges = boxes.new_tensor([self.width, self.height, self.width, self.height])
        return torch.minimum((boxes * boxes.new_tensor([x, y, x, y])).clamp(min=0), edges)

    def maps_back(self, maps: Tensor) -> Tensor:
        """Return maps (K, S, S) of the view, such as logits, resized to the image: (K, height, width)."""
        shown = maps[None, :, : self.shown[0], : self.shown[1]]
        return F.interpolate(shown, (self.height, self.width), mode="bilinear", align_corners=False)[0]

    def classes_back(self, logits: Tensor) -> Tensor:
        """Return the likeliest class of each pixel of the image, (height, width), by logits (K, S, S) of the view.

        One class after the other: all of them at the size of a photo would be gigabytes.
        """
        best = self.maps_back(logits[:1].float())[0]
        likeliest = torch.zeros_like(best, dtype=torch.int64)
        for k in range(1, len(logits)):
            other = self.maps_back(logits[k : k + 1].float())[0]
            likeliest[other > best] = k
            best = torch.maximum(best, other)
        return likeliest


def whole(image: Tensor, target: Target, size: int, mean: tuple[float, ...]) -> tuple[Tensor, Target, Placement]:
    """Return the evaluation view, what it shows, and the way back: the longer side resized to `size`, then padded.

    The padding is at the right or at the bottom, of the channels' `mean` in [0, 1], in masks of 255.
    """
    view, seen = _resized(image, target, size)
    height, width = view.shape[1:]
    view, seen = v2.Pad([0, 0, size - width, size - height], fill=_fill(mean))(view, seen)
    return *_plain(view, seen), Placement(image.shape[1], image.shape[2], (height, width))


def _resized(image: Tensor, target: Target, longest: float) -> tuple[Tensor, Target]:
    """Return an image and its target so resized that the longer side has this length, the other one pixel at least."""
    longer = max(image.shape[1:])
    shape = [max(1, int(side * longest / longer)) for side in image.shape[1:]]
    resized: tuple[Tensor, Target] = v2.Resize(shape)(tv_tensors.Image(image), target)
    return resized


def _fill(mean: Sequence[float]) -> dict[type | str, list[float] | int]:
    """Return what stands outside of an image, by type, as torchvision takes it."""
    return {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: IGNORE, "others": 0}


def _areas(target: Target) -> Tensor:
    """Return the areas (n,) of a target's boxes in pixels; without boxes none."""
    if "boxes" not in target:
        return torch.zeros(0)
    left, top, right, bottom = target["boxes"].as_subclass(Tensor).T
    areas: Tensor = (right - left) * (bottom - top)
    return areas


def _plain(view: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Return plain tensors, the image in [0, 1]."""
    floats: Tensor = v2.functional.to_dtype(view, torch.float32, scale=True)
    return floats.as_subclass(Tensor), {name: values.as_subclass(Tensor) for name, values in target.items()}
