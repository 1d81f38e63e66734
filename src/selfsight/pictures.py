"""Pictures: images of any number of bands as Pillow images, grids of them, and both as data URIs for the page."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selfsight.data import ImageSet, in_order
from selfsight.data.augment import whole
from selfsight.run import replace_file

TILE = 64
"""A smaller image is enlarged by a whole factor to at least this many pixels a side."""
MOST_TILE = 160
"""A larger one is reduced to this many."""
GAP = 4
"""Pixels between two images of a grid."""
LOSSLESS = 200_000
"""Bytes of PNG above which the page holds a lossy WebP instead."""


@dataclass(frozen=True)
class Picture:
    """What a method saw or answered, in the run's pictures folder."""

    file: Path
    caption: str


def save_pictures(folder: Path, pictures: dict[str, Tensor]) -> None:
    """Write each grid (rows, columns, C, S, S) in [0, 1] as a PNG, and their captions to pictures.json.

    One band is grey, three are red, green and blue; of any other number the first (up to) three are stretched to
    their 2nd to 98th percentile.
    """
    listing = []
    for number, (caption, images) in enumerate(pictures.items(), 1):
        drawn = grid(images.detach().float().cpu().numpy())
        name = f"{number:02}.png"
        replace_file(folder / name, drawn.save)
        listing.append({"file": name, "caption": caption})
    text = json.dumps(listing, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / "pictures.json", lambda path: path.write_text(text, encoding="utf-8"))


def read_pictures(folder: Path) -> list[Picture]:
    """Return what `save_pictures` wrote, nothing where it wrote nothing."""
    listing = folder / "pictures.json"
    if not listing.exists():
        return []
    entries: list[dict[str, str]] = json.loads(listing.read_text(encoding="utf-8"))
    return [Picture(folder / entry["file"], entry["caption"]) for entry in entries]


def grid(images: NDArray[np.float32]) -> Image.Image:
    """Return the images (rows, columns, C, S, S) in [0, 1] as one, between them transparent gaps."""
    tiles = [[resized(tile) for tile in row] for row in rgb(images)]
    side = tiles[0][0].width
    step = side + GAP
    sheet = Image.new("RGBA", (step * len(tiles[0]) - GAP, step * len(tiles) - GAP))
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet.paste(tile, (step * x, step * y))
    return sheet


def resized(tile: NDArray[np.uint8], side: int = TILE) -> Image.Image:
    """Return an image (S, S, 3), enlarged to at least `side` pixels or reduced to MOST_TILE."""
    image = Image.fromarray(tile)
    if image.width < side:
        factor = -(-side // image.width)
        return image.resize((image.width * factor,) * 2, Image.Resampling.NEAREST)
    if image.width > MOST_TILE:
        return image.resize((MOST_TILE, MOST_TILE), Image.Resampling.LANCZOS)
    return image


def rgb(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images (..., C, S, S) in [0, 1] as (..., S, S, 3) bytes; if stretched, all alike."""
    bands = images.shape[-3]
    if bands not in (1, 3):
        images = images[..., : 3 if bands > 3 else 1, :, :]
        others = tuple(axis for axis in range(images.ndim) if axis != images.ndim - 3)
        low, high = np.percentile(images, (2, 98), axis=others, keepdims=True)
        images = (images - low) / np.maximum(high - low, 1e-6)
    images = np.moveaxis(images, -3, -1)
    byte = (images.clip(0, 1) * 255).round().astype(np.uint8)
    return np.broadcast_to(byte, (*byte.shape[:-1], 3))


def thumbnails(images: ImageSet, rows: NDArray[np.int64], side: int = TILE) -> list[Image.Image]:
    """Return the centre views of these rows, about `side` to `side` * 1.5 pixels each."""
    size = min(images.side, side)
    batches = in_order(images, rows, 256, torch.device("cpu"))
    views = torch.cat([whole(batch, size) for batch in batches]).numpy()
    return [resized(tile, side) for tile in rgb(views)]


def data_uri(image: Image.Image) -> str:
    """Return the image to be put into a page: PNG, or lossy WebP where that would be large."""
    file, kind = io.BytesIO(), "png"
    image.save(file, "PNG", optimize=True)
    if file.tell() > LOSSLESS:
        file, kind = io.BytesIO(), "webp"
        image.save(file, "WEBP", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
