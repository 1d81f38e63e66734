"""One picture, from a file or from memory, to one uint8 square."""

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pillow_heif import register_heif_opener

from selfsight.data.tiff import ORIENTATION, beyond_pillow, tiff_array, tiff_size
from selfsight.errors import SelfsightError

register_heif_opener()
Image.init()  # now, as threads that load the decoders at the same time see half of them

_TURNS = Image.Transpose
UPRIGHT = {
    2: _TURNS.FLIP_LEFT_RIGHT,
    3: _TURNS.ROTATE_180,
    4: _TURNS.FLIP_TOP_BOTTOM,
    5: _TURNS.TRANSPOSE,
    6: _TURNS.ROTATE_270,
    7: _TURNS.TRANSVERSE,
    8: _TURNS.ROTATE_90,
}
"""What turns an image upright, by its EXIF's orientation."""
_USUAL = [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"]
EXTENSIONS = frozenset([*_USUAL, ".heic", ".heif", ".avif", ".pgm", ".ppm", ".npy"])
UNREAD = frozenset(
    [".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".jp2", ".jxl", ".dcm", ".psd", ".svg", ".nii"]
)
"""Images of other kinds, which are listed as skipped."""
# Only these decoders are tried: EPS, for one, would hand an unknown file to Ghostscript.
DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "HEIF", "AVIF", "PPM")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
MAX_BANDS = 13

Picture = str | Image.Image | NDArray[Any] | torch.Tensor
"""A file, or an image in memory: (H, W) or (H, W, C) as an array, (C, H, W) as a tensor."""


Stretch = tuple[tuple[float, ...], tuple[float, ...]]
"""Which value becomes 0 and which 255 in images of more than 8 bits: one for all bands, or one a band."""
SIXTEEN_BITS: Stretch = ((0.0,), (65535.0,))


class Pictures(Protocol):
    """What decoding reads from: a list of files, an array of images, or a data set of another library."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Picture: ...


class BadImageError(Exception):
    """One picture cannot be used; the message is the reason that the user reads."""


class UnreachableError(BadImageError):
    """The file system failed, not the content: a drive that went away, say. Another day it may be readable."""


@dataclass(frozen=True)
class Recipe:
    """How every picture of a set becomes a square, so that all agree; part of the cache's key."""

    side: int
    channels: int
    stretch: Stretch | None = None
    """Of images of more than 8 bits; None where the set showed none."""


@dataclass(frozen=True)
class Square:
    """One decoded picture."""

    pixels: NDArray[np.uint8]
    """(C, S, S), contiguous."""
    aspect: float
    """Width / height of the original, upright."""


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_context: "warnings.catch_warnings[None] | None" = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow's remarks on odd metadata from the user, whose file is either read or listed as skipped.

    `catch_warnings` restores what it found, which goes wrong when threads overlap: the first to come saves
    and the last to go restores.
    """
    global _quiet_users, _quiet_context
    with _quiet_lock:
        _quiet_users += 1
        if _quiet_context is None:
            _quiet_context = warnings.catch_warnings()
            _quiet_context.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.|pillow_heif")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users and _quiet_context is not None:
                _quiet_context.__exit__(None, None, None)
                _quiet_context = None


def thread_count() -> int:
    """Return how many threads decode: one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def of_another_kind(name: str) -> bool:
    """Return whether a file of this name holds an image of a kind that is not read."""
    return Path(name).suffix.lower() in UNREAD


def not_a_file(file: str) -> str | None:
    """Return why this path is no file to open (missing, a pipe, a folder), or None if it is one."""
    try:
        return _irregular(Path(file).stat().st_mode)
    except FileNotFoundError:
        return "no such file"  # a link to nowhere, or a path in a table
    except OSError as error:
        return (error.strerror or "cannot be opened").lower()
    except ValueError:  # a zero in it
        return "no name of a file"


def _irregular(mode: int) -> str | None:
    if stat.S_ISDIR(mode):
        return "a folder, not an image"
    return None if stat.S_ISREG(mode) else "not a regular file"


@contextmanager
def reasons() -> Iterator[None]:
    """Turn whatever goes wrong inside into a BadImageError whose message is a reason of one line."""
    try:
        yield
    except BadImageError:
        raise
    except FileNotFoundError as error:
        raise UnreachableError("no such file") from error
    except PermissionError as error:
        raise UnreachableError("permission denied") from error
    except UnidentifiedImageError as error:
        raise BadImageError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise BadImageError(f"more than {limit:.0f} million pixels") from error
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())[:200]
        # Pillow raises OSError, too, but only those of the operating system have a number.
        raise (BadImageError(reason) if error.errno is None else UnreachableError(reason.lower())) from error
    # Decoders meet arbitrary bytes and answer with SyntaxError, struct.error, zlib.error, KeyError,
    # MemoryError and more; a data set of the user's may raise anything. One bad picture must not end the run.
    except Exception as error:
        raise BadImageError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def open_image(file: IO[bytes]) -> Image.Image:
    """Return the image in an open file, its pixels not yet decoded; only the decoders above are tried."""
    return Image.open(file, formats=DECODERS)


def holds_bands(file: str) -> bool:
    """Return whether a file is read as an array of bands: NumPy's own, or a TIFF that Pillow would not read right."""
    if not file.lower().endswith((".tif", ".tiff")) or not_a_file(file):
        return file.lower().endswith(".npy")
    try:
        with reasons():
            return beyond_pillow(file)
    except BadImageError:
        return False  # Pillow says what is wrong, or it is an image of another kind


def fetch(pictures: Pictures, row: int) -> Picture:
    """Return pictures[row]; BadImageError if the data set itself fails at it."""
    with reasons():
        return pictures[row]


def decode(picture: Picture, recipe: Recipe) -> Square:
    """Return the picture squeezed to a (C, S, S) square; BadImageError with the reason if it cannot be."""
    with reasons():
        if isinstance(picture, str) and not holds_bands(picture):
            # Read at once: Pillow's own reading in small pieces costs a tenth of the speed.
            with open_image(io.BytesIO(_bytes(picture))) as image:
                if image.format in ("JPEG", "MPO"):
                    aspect = _upright_aspect(image)
                    # Let the JPEG decoder itself shrink, to the smallest of 1/1 .. 1/8 that is large enough.
                    image.draft("L" if recipe.channels == 1 else None, (recipe.side, recipe.side))
                    return Square(_from_image(image, recipe), aspect)
                pixels = _from_image(image, recipe)
                return Square(pixels, _upright_aspect(image))
        if isinstance(picture, Image.Image):
            return Square(_from_image(picture, recipe), _upright_aspect(picture))
        array = as_array(picture)
        return Square(_from_array(array, recipe), array.shape[1] / array.shape[0])


def read_size(picture: Picture) -> tuple[int, int]:
    """Return (width, height), upright, from the header alone; BadImageError if that is broken already."""
    with reasons():
        if isinstance(picture, str) and not holds_bands(picture):
            if reason := not_a_file(picture):
                raise BadImageError(reason)
            with Path(picture).open("rb") as file, open_image(file) as image:
                return _upright_size(image)
        if isinstance(picture, Image.Image):
            return _upright_size(picture)
        if isinstance(picture, str) and not picture.lower().endswith(".npy"):
            return tiff_size(picture)
        height, width = as_array(picture).shape[:2]
        return width, height


def read_aspect(picture: Picture) -> float:
    """Return width / height from the header alone; BadImageError if that is broken already."""
    width, height = read_size(picture)
    return width / height


def read_indices(file: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the (H, W) numbers that a grey or palette PNG holds, of 1, 2 or 4 bits too.

    Pillow makes these brightnesses of 0 to 255. BadImageError if it holds colours, or cannot be read.
    """
    with reasons(), Image.open(io.BytesIO(_bytes(file)), formats=("PNG",)) as image:
        if image.mode not in ("1", "L", "P", "I;16"):
            raise BadImageError("holds colours, not class numbers; save it as a grey or palette PNG")
        times = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1)
        numbers = np.asarray(image)
        return numbers.astype(np.uint8) if numbers.dtype == bool else numbers // times


def nothing_readable(source: str, given: Sequence[str], count: int) -> SelfsightError:
    """Return the error for a set without a single readable image; it names the commonest of the reasons given."""
    common = max(set(given), key=given.count)
    return SelfsightError(f"{source}: none of {count} images could be read; most often: {common}")


def as_array(picture: str | NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    """Return a non-empty array (H, W) or (H, W, C)."""
    if isinstance(picture, torch.Tensor):
        array: NDArray[Any] = picture.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    elif isinstance(picture, str):
        array = _array_in(picture)
    else:
        array = np.asarray(picture)
    if array.ndim not in (2, 3) or not array.size or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise BadImageError(f"not an image: {array.dtype} of shape {array.shape}")
    return bands_last(array) if array.ndim == 3 else array


def _array_in(file: str) -> NDArray[Any]:
    """Return the array in a file that `holds_bands`, of a TIFF its first page's."""
    content = io.BytesIO(_bytes(file))
    if file.lower().endswith(".npy"):
        saved: NDArray[Any] = np.load(content, allow_pickle=False)
        return saved
    return tiff_array(content)


def bands_last(array: NDArray[Any]) -> NDArray[Any]:
    """Return (..., H, W, C), whether it came as that or as (..., C, H, W); BadImageError if it is neither."""
    first, last = array.shape[-3], array.shape[-1]
    for counts in ((1, 3, 4), range(1, MAX_BANDS + 1)):
        if last in counts:
            return array
        if first in counts:
            return np.moveaxis(array, -3, -1)
    raise BadImageError(f"neither (H, W, C) nor (C, H, W) with 1 to {MAX_BANDS} bands: shape {array.shape}")


def to_uint8(array: NDArray[Any], recipe: Recipe) -> NDArray[np.uint8]:
    """Return an array (..., H, W[, C]) of any number type as uint8, stretched as the recipe says."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = (np.array(values, np.float32) for values in recipe.stretch or SIXTEEN_BITS)
    if array.ndim == 2:  # grey among colours
        low, high = low.mean(), high.mean()
    scaled = np.nan_to_num((array.astype(np.float32) - low) * (255 / (high - low)))  # NaN marks gaps in tiles
    pixels: NDArray[np.uint8] = scaled.clip(0, 255).round().astype(np.uint8)
    return pixels


def _bytes(file: str) -> bytes:
    if reason := _irregular(Path(file).stat().st_mode):  # opening a pipe would wait for ever
        raise BadImageError(reason)
    content = Path(file).read_bytes()
    if not content:
        raise BadImageError("empty file")
    return content


def _orientation(image: Image.Image) -> int:
    # Without a word of EXIF before the pixels, Pillow would decode a whole PNG to look behind them.
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif", "xmp"}:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # broken EXIF, sound pixels
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF says.

    Not by ImageOps.exif_transpose, which writes all of the EXIF anew and fails at odd words in it.
    """
    image.load()  # which turns a TIFF
    turn = UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)  # Pillow turns a TIFF's size by itself
    return (height, width) if turned else (width, height)


def _upright_aspect(image: Image.Image) -> float:
    width, height = _upright_size(image)
    return width / height


def _from_image(image: Image.Image, recipe: Recipe) -> NDArray[np.uint8]:
    """Return (C, S, S) pixels, upright, transparency on white."""
    image = upright(image)
    if image.mode in DEEP_MODES:
        return _from_array(np.asarray(image), recipe)
    if recipe.channels == 4 and len(image.getbands()) == 4:
        return _from_array(np.asarray(image), recipe)
    if recipe.channels not in (1, 3):
        raise BadImageError(f"{len(image.getbands())} bands where the set has {recipe.channels}")
    mode = "L" if recipe.channels == 1 else "RGB"
    if image.has_transparency_data:
        image = on_white(_resize(image.convert("RGBA"), recipe.side))
    if image.mode != mode:
        image = image.convert(mode)
    pixels = np.asarray(_resize(image, recipe.side))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _from_array(array: NDArray[Any], recipe: Recipe) -> NDArray[np.uint8]:
    """Return (C, S, S) pixels from (H, W) or (H, W, C)."""
    array = to_uint8(array, recipe)
    bands = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    if len(bands) in (1, 3) and recipe.channels in (1, 3):
        flat = bands[0] if len(bands) == 1 else np.moveaxis(bands, 0, -1)
        return _from_image(Image.fromarray(np.ascontiguousarray(flat)), recipe)
    if len(bands) != recipe.channels:
        raise BadImageError(f"{len(bands)} bands where the set has {recipe.channels}")
    images = (_resize(Image.fromarray(np.ascontiguousarray(band)), recipe.side) for band in bands)
    return np.stack([np.asarray(image) for image in images])


def on_white(image: Image.Image) -> Image.Image:
    """Return the image in RGB, white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _resize(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    # Hamming shrinks as sharply as bicubic at two thirds of its time, but is poor at enlarging.
    shrinks = min(image.size) >= side
    method = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    return image.resize((side, side), method, reducing_gap=2.0)
