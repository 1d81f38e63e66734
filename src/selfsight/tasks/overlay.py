"""What was found in an image, drawn on it: boxes with class and score, coloured masks, a legend."""

import colorsys
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

Colour = tuple[int, int, int]


def overlay(
    image: Tensor, answer: Any, size: tuple[int, int], classes: Sequence[str], colours: Sequence[Colour]
) -> Image.Image:
    """Return an image (3, H, W) uint8 with boxes, classes and scores on it, or with its classes coloured and a legend.

    `answer` is in pixels of the original of `size` (width, height): a dict of boxes (n, 4), labels (n,) and, of a
    prediction, scores (n,); or the class of each pixel, (height, width).
    """
    picture = Image.fromarray(painted(image, answer, size, classes, colours).permute(1, 2, 0).numpy())
    if isinstance(answer, dict):
        return picture
    present = [k for k in range(1, len(classes)) if bool((answer == k).any())]
    return with_legend(picture, [(classes[k], colours[k]) for k in present])


def painted(
    image: Tensor, answer: Any, size: tuple[int, int], classes: Sequence[str], colours: Sequence[Colour]
) -> Tensor:
    """Return the image (3, H, W) uint8 of `overlay` without the legend."""
    height, width = image.shape[1:]
    if isinstance(answer, dict) and len(answer["boxes"]):
        boxes = answer["boxes"] * torch.tensor([width / size[0], height / size[1]] * 2)
        names = [classes[k] for k in answer["labels"]]
        if "scores" in answer:
            names = [f"{name} {score:.0%}" for name, score in zip(names, answer["scores"].tolist(), strict=True)]
        chosen = [colours[k] for k in answer["labels"]]
        width_of_line = max(1, min(height, width) // 150)
        image = draw_bounding_boxes(image, boxes, names, chosen, width=width_of_line, fill_labels=True)
    elif not isinstance(answer, dict):
        shown = torch.nn.functional.interpolate(answer[None, None].float(), (height, width), mode="nearest-exact")[0, 0]
        present = [k for k in range(1, len(classes)) if bool((shown == k).any())]
        if present:
            masks = torch.stack([shown == k for k in present])
            image = draw_segmentation_masks(image, masks, 0.5, [colours[k] for k in present])
    return image


def palette(count: int, first_is_background: bool) -> list[Colour]:
    """Return so many colours (red, green, blue) that can be told apart; the background is black."""
    golden = 0.618034  # turns of the hue: neighbours in number are far apart in colour
    colours = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k * golden % 1, 0.75, 0.95)) for k in range(count)]
    return [(0, 0, 0), *colours[: count - 1]] if first_is_background else colours  # type: ignore[return-value,list-item]


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Return the picture with a strip under it that names the colours."""
    if not entries:
        return picture
    size = max(11, picture.height // 25)
    font = ImageFont.load_default(size)
    strip = Image.new("RGB", (picture.width, picture.height + 2 * size), "white")
    strip.paste(picture, (0, 0))
    draw, x = ImageDraw.Draw(strip), size // 2
    for name, colour in entries:
        top = picture.height + size // 2
        draw.rectangle((x, top, x + size, top + size), fill=colour)
        draw.text((x + size * 1.3, top - size * 0.1), name, fill="black", font=font)
        x += round(size * 2.2 + draw.textlength(name, font=font))
    return strip
