"""What the pictures of a set are like, so that all of them become squares in one way."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selfsight.data.decode import (
    DEEP_MODES,
    BadImageError,
    Picture,
    Pictures,
    Recipe,
    Stretch,
    as_array,
    fetch,
    holds_bands,
    nothing_readable,
    open_image,
    quiet_decoders,
    reasons,
    thread_count,
)
from selfsight.errors import SelfsightError

SAMPLE = 200  # images looked at to learn what a set is like
DEEP_SAMPLE = 32  # of these, how many 16-bit ones are decoded for the percentiles


def learn_recipe(
    pictures: Pictures,
    source: str,
    image_size: int,
    side: int | None = None,
    channels: int | None = None,
    stretch: Stretch | None = None,
) -> Recipe:
    """Look at up to 200 pictures, spread over the set, and return the recipe that fits them all.

    The side is the smaller of `side` (1.5 * image_size if None) and the 90th percentile of the pictures' own
    longer sides, but at least 8. There is one channel if all are grey, three if any has colour, else as many
    as there are bands. Deeper than 8 bits is stretched as `stretch` says, by default from the 0.5th to the 99.5th
    percentile of the sample; fractions within 0 .. 1 keep their scale then.

    SelfsightError if nothing can be read, or if band counts differ or are not what `channels` asks for.
    """

    def look(row: int) -> _Look | str:
        try:
            return _look(fetch(pictures, row), row, channels)
        except BadImageError as error:
            return str(error)

    def values(row: int) -> NDArray[Any]:
        try:
            return _deep_values(fetch(pictures, row))
        except BadImageError:  # the header was fine, the rest is not: the full pass will list it
            return np.zeros((0, 1))

    sample = np.unique(np.linspace(0, len(pictures) - 1, SAMPLE).astype(int)).tolist()
    with quiet_decoders(), ThreadPoolExecutor(thread_count()) as pool:
        seen = list(pool.map(look, sample))
        looks = [s for s in seen if isinstance(s, _Look)]
        if not looks:
            raise nothing_readable(source, [s for s in seen if isinstance(s, str)], len(pictures))
        deep_rows = [s.row for s in looks if s.deep]
        deep = list(pool.map(values, deep_rows[:: max(1, len(deep_rows) // DEEP_SAMPLE)]))
    bands = sorted({s.bands for s in looks})
    tiles = not {1, 3}.issuperset(bands)  # grey and colour go together, other bands only with their like
    if tiles and len(bands) > 1:
        raise SelfsightError(
            f"{source}: images of {bands[0]} and of {bands[-1]} bands; all must have the same number of bands"
        )
    if channels not in ((None, bands[0]) if tiles else (None, 1, 3)):
        raise SelfsightError(f"{source}: the images have {bands[-1]} bands, not {channels}")
    longer = float(np.percentile([s.longer for s in looks], 90))
    final_side = max(8, int(min(side or 1.5 * image_size, longer)))
    deep = [d for d in deep if d.size]
    if deep and stretch is None:
        stretch = _stretch(np.concatenate([d for d in deep if d.shape[1] == deep[0].shape[1]]))
    return Recipe(final_side, channels or bands[-1], stretch)


@dataclass(frozen=True)
class _Look:
    row: int
    longer: int
    bands: int
    deep: bool
    """More than 8 bits a value."""


def _look(picture: Picture, row: int, channels: int | None) -> _Look:
    if isinstance(picture, str) and not holds_bands(picture):
        with reasons(), Path(picture).open("rb") as file, open_image(file) as image:
            return _look(image, row, channels)
    with reasons():
        if not isinstance(picture, Image.Image):
            array = as_array(picture)
            bands = array.shape[2] if array.ndim == 3 else 1
            return _Look(row, max(array.shape[:2]), bands, array.dtype not in (np.uint8, np.bool_))
        all_four = channels == 4 and len(picture.getbands()) == 4  # asked for, so alpha is a band here
        bands = 4 if all_four else 1 if _is_grey(picture) else 3
        return _Look(row, max(picture.size), bands, picture.mode in DEEP_MODES)


def _is_grey(image: Image.Image) -> bool:
    palette = image.getpalette() if image.mode == "P" else None
    if palette is not None:
        return bool((np.ptp(np.reshape(palette, (-1, 3)), axis=1) == 0).all())
    return image.mode in ("1", "L", "LA", "La", *DEEP_MODES)


def _deep_values(picture: Picture) -> NDArray[Any]:
    """Return some (values, bands) of an image of more than 8 bits."""
    with reasons():
        if isinstance(picture, str) and not holds_bands(picture):
            with Path(picture).open("rb") as file, open_image(file) as image:
                array = np.asarray(image)
        else:
            array = np.asarray(picture) if isinstance(picture, Image.Image) else as_array(picture)
        values = array.reshape(-1, 1 if array.ndim == 2 else array.shape[2])
        return values[:: max(1, len(values) // 10_000)]


def _stretch(values: NDArray[Any]) -> Stretch:
    """Return per band the values (N, bands) that become 0 and 255."""
    if np.issubdtype(values.dtype, np.floating) and np.nanmin(values) >= 0 and np.nanmax(values) <= 1:
        return (0.0,), (1.0,)
    low, high = np.nan_to_num(np.nanpercentile(values, [0.5, 99.5], axis=0))
    return tuple(low.tolist()), tuple(np.where(high > low, high, low + 1).tolist())
