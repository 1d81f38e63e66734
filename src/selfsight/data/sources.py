"""The one entry to data: whatever the user passes becomes an ImageSet."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.annotations import Annotated
from selfsight.data.cache import cached, default_cache_dir, in_memory, streamed
from selfsight.data.decode import EXTENSIONS, Stretch
from selfsight.data.folder import identify, list_files, list_folder
from selfsight.data.formats import TABLES, from_object, is_idx, is_table, read_idx, read_npz, read_table
from selfsight.data.images import ImageSet
from selfsight.data.listing import Listing
from selfsight.data.recipe import learn_recipe
from selfsight.errors import SelfsightError


def open_images(
    data: Any,
    *,
    side: int | None = None,
    image_size: int,
    channels: int | None = None,
    stretch: Stretch | None = None,
    cache: bool = True,
    cache_dir: Path | None = None,
    verify: bool = False,
) -> ImageSet:
    """Return the images of a folder, IDX pair, .npz, table, array, data set of another library, boxes or masks.

    Each becomes a square of `side` pixels, by default 1.5 times `image_size` (the size of a method's views), but
    not more than the images have themselves; the aspect is kept beside it. `channels` is found out if None,
    and so is `stretch`, the values that become 0 and 255 where images have more than 8 bits.
    Files are decoded once into `cache_dir` (default $SELFSIGHT_CACHE or ~/.cache/selfsight), or every time
    they are asked for if `cache` is False; then one that is damaged behind its header is replaced by a neighbour when
    it is met, which labels don't bear: to `verify` decodes each once now. What cannot be read is left out and listed in
    `skipped`.

    SelfsightError if `data` is missing, empty, of an unknown kind, or has no readable image.
    """
    if isinstance(data, ImageSet):
        return data
    listing = list_images(data)
    recipe = learn_recipe(listing.pictures, listing.source, image_size, side, channels, stretch)
    if isinstance(listing.pictures, np.ndarray) or (cache and listing.identity is None):
        images = in_memory(listing, recipe)
    elif not cache:
        images = streamed(listing, recipe, verify=verify)
    else:
        images = cached(listing, recipe, cache_dir or default_cache_dir())
    return replace(images, stretch=recipe.stretch)


def open_rows(
    listing: Listing,
    rows: Sequence[int],
    *,
    image_size: int,
    channels: int | None = None,
    stretch: Stretch | None = None,
) -> ImageSet:
    """Return some of a data set's images in memory, the same squares as `open_images` makes of them.

    What cannot be read is left out and listed in `skipped`; it may be all of them.
    """
    recipe = learn_recipe(listing.pictures, listing.source, image_size, None, channels, stretch)
    return replace(in_memory(listing.part(rows), recipe, may_be_empty=True), stretch=recipe.stretch)


def learn_stretch(data: Any) -> Stretch | None:
    """Return which values become 0 and 255 in the images of this data, None if they have 8 bits."""
    listing = list_images(data)
    return learn_recipe(listing.pictures, listing.source, 1).stretch


def list_images(data: Any) -> Listing:
    """Return what the data consists of, nothing decoded yet; SelfsightError as in `open_images`."""
    if isinstance(data, Annotated):
        return Listing(
            data.source, list(data.files), data.names, split=data.split, identity=identify([*data.names], [*data.files])
        )
    if isinstance(data, list) and data and all(isinstance(item, str | Path) for item in data):
        return list_files(data)
    if not isinstance(data, str | Path):
        return from_object(data)
    path = Path(data).expanduser()
    if not path.exists():
        raise SelfsightError(f"{data}: no such file or folder")
    try:
        if is_idx(path):
            return read_idx(path)
        if path.is_dir():
            return list_folder(path)
        if path.suffix.lower() == ".npz":
            return read_npz(path)
        if is_table(path):
            return read_table(path)
        if path.suffix.lower() in EXTENSIONS:
            return list_files([path])
    except OSError as error:  # a folder that may not be listed, a file that goes while it is looked at
        raise SelfsightError(f"{path}: cannot be read: {error.strerror}") from error
    raise SelfsightError(f"{path}: not a data set; pass a folder of images, an IDX pair, .npz, {', '.join(TABLES)}")
