"""What a file says of itself: its bytes' hash, its size, when the photo was taken; and what an image looks like."""

import hashlib
import io
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from selfsight.data.decode import BadImageError, as_array, open_image, read_size, reasons
from selfsight.search.index import Entry

EXIF, TAKEN, PART, WRITTEN = 0x8769, 0x9003, 0x9291, 0x0132
"""EXIF's own directory, in it when the photo was taken, the part of that second; and when the file was last changed."""
GREY_SIDE, LOW = 32, 8
"""Of the perceptual hash: side of the image looked at, and of the square of its lowest frequencies."""


def read_facts(name: str, file: str, label: str) -> Entry:
    """Return what the file says of itself; BadImageError if it cannot be read."""
    with reasons():
        status, content = Path(file).stat(), Path(file).read_bytes()
    width, height = read_size(file)
    moment, dated = (None, False) if file.lower().endswith(".npy") else taken(content)
    return Entry(
        name=name,
        file=file,
        label=label,
        taken=moment,
        size=status.st_size,
        modified=status.st_mtime_ns,
        width=width,
        height=height,
        content=hashlib.sha256(content).hexdigest(),
        dated=dated,
    )


def array_facts(name: str, picture: object, label: str) -> Entry:
    """Return what there is to know of an image in memory; BadImageError if it is none."""
    with reasons():
        array = np.ascontiguousarray(np.asarray(picture) if isinstance(picture, Image.Image) else as_array(picture))  # type: ignore[arg-type]
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    digest.update(array.data)
    return Entry(name=name, label=label, width=array.shape[1], height=array.shape[0], content=digest.hexdigest())


def taken(content: bytes) -> tuple[datetime | None, bool]:
    """Return when the photo in this file was taken, by its EXIF, and whether that is the camera's word.

    Else it is when the file was last changed; None if it doesn't say so in a way to understand.
    """
    try:
        with reasons(), open_image(io.BytesIO(content)) as image:
            tags = image.getexif()
            own = tags.get_ifd(EXIF)
            text = str(own.get(TAKEN) or tags.get(WRITTEN) or "").strip("\0 ")
            part = str(own.get(PART, "")).strip("\0 ")[:6] if own.get(TAKEN) else ""
            moment = f"{text}.{part if part.isdecimal() else 0}"
            return datetime.strptime(moment, "%Y:%m:%d %H:%M:%S.%f"), bool(own.get(TAKEN))
    except BadImageError:
        return None, False


class Looks(nn.Module):
    """The lowest frequencies of images, by which copies that were resized or compressed anew know each other.

    The perceptual hash of Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section
    3.2.1: a discrete cosine transform of the grey image at 32 x 32 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        place, frequency = torch.arange(GREY_SIDE)[None], torch.arange(LOW)[:, None]
        self.register_buffer("basis", torch.cos(math.pi / GREY_SIDE * (place + 0.5) * frequency))  # (LOW, GREY_SIDE)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 64) coefficients of images (B, C, S, S) in [0, 1], the lowest frequency first."""
        basis: Tensor = self.basis  # type: ignore[assignment]
        grey = nn.functional.interpolate(
            images.float().mean(1, keepdim=True), (GREY_SIDE, GREY_SIDE), mode="bilinear", antialias=True
        )[:, 0]  # (B, 32, 32)
        with torch.autocast(images.device.type, enabled=False):
            return (basis @ grey @ basis.T).flatten(1)  # (B, 64)


def hashes(coefficients: NDArray[np.float32]) -> list[str]:
    """Return for coefficients (N, 64) as many hashes: which of them are above their median, 16 hexadecimal digits.

    The first coefficient, the brightness, says nothing of what is seen where; its bit is 0.
    """
    others = coefficients[:, 1:]
    above = np.zeros(coefficients.shape, np.uint8)
    above[:, 1:] = others > np.median(others, axis=1, keepdims=True)
    return [row.tobytes().hex() for row in np.packbits(above, axis=1)]


def bits(looks: Sequence[str]) -> NDArray[np.uint8]:
    """Return (N, 64) the bits of these hashes, 0 or 1."""
    packed = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(len(looks), -1)
    return np.unpackbits(packed, axis=1)
