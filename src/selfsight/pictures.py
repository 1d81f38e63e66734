"""Pictures: images of any number of bands as Pillow images, grids of them, and both as data URIs for the page."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selfsight.data import ImageSet, in_order
from selfsight.data.augment import whole
from selfsight.data.decode import DEEP_MODES, as_array, holds_bands, on_white, open_image, reasons, upright
from selfsight.run import replace_file

TILE = 64
"""A smaller image is enlarged by a whole factor to at least this many pixels a side."""
MOST_TILE = 160
"""A larger one is reduced to this many,"""
MOST_ALONE = 1000
"""or, where it is a picture by itself, to this many."""
MOST_IMAGES = 10
"""Images that a picture shows."""
GAP = 4
"""Pixels between two images of a grid."""
CELL, FRAME = 40, 4
"""Side of a matrix's cell, and the width of its frame, in pixels."""
MARK, GREY = (1.0, 0.25, 0.2), 0.75
"""The frame's colour, and the diagonal's."""
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
    most = MOST_ALONE if images.shape[:2] == (1, 1) else MOST_TILE
    tiles = [[resized(tile, most=most) for tile in row] for row in rgb(images)]
    side = tiles[0][0].width
    step = side + GAP
    sheet = Image.new("RGBA", (step * len(tiles[0]) - GAP, step * len(tiles) - GAP))
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet.paste(tile, (step * x, step * y))
    return sheet


def resized(tile: NDArray[np.uint8], side: int = TILE, most: int = MOST_TILE) -> Image.Image:
    """Return an image (S, S, 3), enlarged to at least `side` pixels or reduced to `most`."""
    image = Image.fromarray(tile)
    if image.width < side:
        factor = -(-side // image.width)
        return image.resize((image.width * factor,) * 2, Image.Resampling.NEAREST)
    if image.width > most:
        return image.resize((most, most), Image.Resampling.LANCZOS)
    return image


def shrunk(file: str, longest: int) -> Image.Image:
    """Return the image in a file upright, in RGB, its longer side at most `longest`; BadImageError if there is none."""
    with reasons():
        if holds_bands(file):
            shown = _stretched(np.moveaxis(np.atleast_3d(as_array(file)), -1, 0))
        else:
            with Path(file).open("rb") as opened, open_image(opened) as image:
                image.draft("RGB", (longest, longest))
                turned = upright(image)
                shown = _stretched(np.asarray(turned)[None]) if turned.mode in DEEP_MODES else on_white(turned)
        shown.thumbnail((longest, longest), Image.Resampling.BICUBIC)
        return shown


def _stretched(bands: NDArray[Any]) -> Image.Image:
    """Return (C, H, W) of any number type as a picture, from its own darkest to its own lightest values."""
    values = np.nan_to_num(bands.astype(np.float32))
    low, high = (0, 255) if bands.dtype == np.uint8 else np.percentile(values, (0.5, 99.5))
    return Image.fromarray(rgb(np.asarray((values - low) / max(high - low, 1e-6), np.float32)))


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


def bars(heights: Tensor, size: int) -> Tensor:
    """Draw heights (B, n) from 0 to 1 as white bars on black, side by side: (B, 1, size, size)."""
    columns = heights[:, torch.arange(size) * heights.shape[1] // size]  # (B, size)
    level = torch.linspace(1, 1 / size, size, device=heights.device)[:, None]
    return (columns[:, None] >= level).float()[:, None]


def in_colour(images: Tensor) -> Tensor:
    """Return images (..., C, S, S) in [0, 1] of any bands as `rgb` shows them: (..., 3, S, S) in [0, 1]."""
    shown = rgb(images.detach().float().cpu().numpy()).copy()
    return torch.from_numpy(shown).movedim(-1, -3).float() / 255


def heat(values: Tensor, name: str = "viridis") -> Tensor:
    """Return values (..., h, w) from 0 to 1 in one of matplotlib's colour maps: (..., 3, h, w) in [0, 1]."""
    colours = colormaps[name](values.detach().float().cpu().numpy().clip(0, 1))  # (..., h, w, 4)
    return torch.from_numpy(np.asarray(colours, np.float32)[..., :3]).movedim(-1, -3)


def matrix(values: Tensor, images: Tensor, framed: Tensor) -> Tensor:
    """Draw how alike N images are, as a single tile (1, 1, 3, P, P) with P = (N + 1) · CELL.

    `values` (N, N): dark where 0 or less, bright where 1, grey on the diagonal. `images` (N, C, S, S) in [0, 1] stand
    before the rows and above the columns. `framed` (N, N) bool: the cells to mark.
    """
    n = len(images)
    small = F.interpolate(in_colour(images), (CELL, CELL), mode="bilinear", antialias=True).clamp(0, 1)
    across = torch.arange(n * CELL)
    place, within = across // CELL, across % CELL
    cells = heat(values)[:, place][:, :, place]  # (3, n · CELL, n · CELL)
    cells = torch.where(torch.eye(n, dtype=torch.bool)[place][:, place], GREY, cells)
    edge = torch.minimum(within, CELL - 1 - within)
    edge = torch.minimum(edge[:, None], edge)  # pixels to the nearest border of the cell
    frame = framed.cpu()[place][:, place] & (edge < FRAME)
    cells = torch.where(frame, torch.tensor(MARK)[:, None, None], cells)
    cells = torch.where((edge < 1), 1.0, cells)  # a thin line between all
    tile = torch.ones(3, (n + 1) * CELL, (n + 1) * CELL)
    tile[:, CELL:, CELL:] = cells
    tile[:, :CELL, CELL:] = small.permute(1, 2, 0, 3).flatten(2)
    tile[:, CELL:, :CELL] = small.transpose(0, 1).flatten(1, 2)
    return tile[None, None]


def spread(rows: NDArray[np.int64], n: int = MOST_IMAGES) -> NDArray[np.int64]:
    """Return up to n of the rows, evenly spread over them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), n)).astype(np.int64)]


def examples(images: ImageSet, n: int = MOST_IMAGES) -> NDArray[np.int64]:
    """Return up to n rows to show, spread over the test part, which no training saw; without one over all images."""
    test = images.rows("test")
    return spread(test if len(test) else images.rows("train"), n)


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
