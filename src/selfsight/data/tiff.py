"""TIFFs whose bands Pillow would not read right, by tifffile."""

import logging
import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffPage

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # of odd tags, in files that are read all the same

COLOURS = (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.CIELAB)
"""What a TIFF says of itself whose picture has three bands."""
ORIENTATION = 0x0112
"""The tag that says how a picture is turned, in TIFF as in EXIF."""


def beyond_pillow(file: str) -> bool:
    """Return whether Pillow would not read a TIFF right; whatever tifffile raises if it is none.

    Pillow drops a fourth band that is not transparency, reads no fifth, and keeps the upper eight bits of colours.
    """
    with TiffFile(file) as tiff:
        page = _first_page(tiff)
        more = page.samplesperpixel - _shown(page)
        plain = page.photometric in (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.PALETTE)
        return not plain and (more > 1 or (more == 1 and not _transparent(page)) or page.bitspersample > 8)


def tiff_size(file: str) -> tuple[int, int]:
    """Return (width, height) of the first page, upright; Pillow's DecompressionBombError if it is too large."""
    with TiffFile(file) as tiff:
        return _size(_first_page(tiff))


def tiff_array(content: IO[bytes]) -> NDArray[Any]:
    """Return the first page as (H, W), or (H, W, C) of several bands, upright and without its transparency.

    Pillow's DecompressionBombError if it is too large.
    """
    with TiffFile(content) as tiff:
        page = _first_page(tiff)
        _size(page)
        array: NDArray[Any] = page.asarray()
    if array.ndim == 3 and array.shape[0] == page.samplesperpixel:  # each band is stored by itself
        array = np.moveaxis(array, 0, -1)
    array, turned = np.atleast_3d(array), _turned(page)
    array = array.swapaxes(0, 1) if turned in (5, 6, 7, 8) else array  # as EXIF numbers them
    array = array[:: -1 if turned in (3, 4, 7, 8) else 1, :: -1 if turned in (2, 3, 6, 7) else 1]
    array = array[..., : _shown(page)] if _transparent(page) else array
    return array if array.shape[2] > 1 else array[..., 0]


def _first_page(tiff: TiffFile) -> TiffPage:
    page = tiff.pages.first
    assert isinstance(page, TiffPage)
    return page


def _shown(page: TiffPage) -> int:
    """Return how many bands are the picture's; what is more is transparency, or of its own."""
    return 3 if page.photometric in COLOURS else 1


def _transparent(page: TiffPage) -> bool:
    """Return whether all bands beyond the picture's are said to be transparency."""
    return bool(page.extrasamples) and {EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA}.issuperset(page.extrasamples)


def _size(page: TiffPage) -> tuple[int, int]:
    size = page.imagewidth, page.imagelength
    if size[0] * size[1] > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError
    return size if _turned(page) < 5 else size[::-1]


def _turned(page: TiffPage) -> int:
    tag = page.tags.get(ORIENTATION)
    return 1 if tag is None else int(tag.value)
