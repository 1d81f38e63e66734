"""MaskSet: images with the class of every pixel, from index PNGs or from COCO's polygons and run lengths."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsight.data.annotations import Annotated, BadLabelError, Findings, Size, clip, finite
from selfsight.data.coco import read_coco
from selfsight.data.decode import BadImageError, quiet_decoders, read_indices, thread_count
from selfsight.data.parts import Part, Source, class_names, coco_files, numbered, paired_folders, read_everything
from selfsight.errors import SelfsightError

IGNORE = 255  # the number of pixels that belong to no class
BACKGROUND = "background"


@dataclass(frozen=True)
class Region:
    """The pixels of one object, not drawn yet."""

    label: int
    segmentation: Any
    """COCO's list of polygons, or run lengths as a dict."""


@dataclass(frozen=True, kw_only=True)
class MaskSet(Annotated):
    """The images of a data set and a mask for each."""

    masks: Sequence[str | Sequence[Region]]
    """(N,) path of an index PNG, or regions to draw on class 0, later ones over earlier."""
    present: Sequence[NDArray[np.int64]]
    """(N,) arrays: the classes that occur in each image, which is never `ignore`."""
    ignore: int = IGNORE

    def label_bytes(self, row: int) -> bytes:
        """Return what an image's mask is drawn from: other bytes, another mask."""
        mask = self.masks[row]
        return Path(mask).read_bytes() if isinstance(mask, str) else repr(mask).encode()

    def load_mask(self, row: int) -> NDArray[np.uint8]:
        """Return the (H, W) class numbers, of the upright image's size, `ignore` where a pixel has none.

        SelfsightError if the mask's file has gone or become unreadable since the set was opened.
        """
        mask = self.masks[row]
        if not isinstance(mask, str):
            return _draw(mask, self.sizes[row].tolist())
        try:
            numbers = read_indices(mask)
        except BadImageError as error:
            raise SelfsightError(f"{mask}: {error}") from error
        return np.where(numbers < len(self.classes), numbers, self.ignore).astype(np.uint8)


def open_masks(path: str | Path, *, strict: bool = False, part: str | None = None) -> MaskSet:
    """Return the masks of a data set, whose kind is found out.

    - A folder with `images/` and `masks/`: for each image a PNG of the same name whose grey or palette indices are
      class numbers, 255 for pixels to ignore. Class names come from classes.txt (or data.yaml), else they are
      'class 0' and so on, up to the largest number found.
    - COCO with polygons or run lengths (a .json file, or a folder as for `open_boxes`). Class 0 is then the
      background, and later annotations lie over earlier ones; crowds are drawn like any other.
    - A folder with the subfolders train and test (or val), each in one of these formats; `part` reads that one alone.

    What is wrong is listed in `problems`: images without a mask, or whose mask has another size, are left out, as are
    polygons and run lengths that make no sense; a number that no class has is ignored like 255. With COCO, images
    without annotation are kept as background.

    SelfsightError if there is no such data set or part, nothing but class 0 is left, or, if `strict`, there is any
    problem.
    """
    found = read_everything(
        path,
        _mask_sources,
        strict,
        part,
        "masks found; give images/ and masks/, or COCO (annotations.json) with polygons",
    )
    why = f"; {found.findings.first()}" if found.findings.found else ""
    for one in found.parts:
        if (
            any(isinstance(image.mask, Path) for image in one.images)
            and one.classes != found.classes[: len(one.classes)]
        ):
            raise SelfsightError(
                f"{path}: its parts name the classes differently, or a name comes twice; mend classes.txt"
            )
    if len(found.classes) > IGNORE:
        raise SelfsightError(f"{path}: {len(found.classes)} classes, but masks hold at most {IGNORE}")
    if not any(name != found.classes[0] for image in found.images for name in image.present):
        raise SelfsightError(
            f"{path}: the masks hold nothing but class 0 and {IGNORE}, which is ignored; number a second class 1{why}"
        )
    number = {name: index for index, name in enumerate(found.classes)}
    return MaskSet(
        source=str(path),
        files=found.files,
        names=found.names,
        sizes=found.sizes,
        classes=found.classes,
        split=found.split,
        problems=found.findings.problems,
        masks=[
            str(image.mask)
            if isinstance(image.mask, Path)
            else [Region(number[name], shape) for name, shape in image.mask]
            for image in found.images
        ],
        present=[np.array(sorted({number[name] for name in image.present}), np.int64) for image in found.images],
    )


@dataclass(frozen=True)
class _Masked:
    """An image and its mask."""

    file: Path
    size: Size
    mask: Path | list[tuple[str, Any]]
    """An index PNG, or (class, segmentation) of each region."""
    present: list[str] = field(default_factory=list)
    """The classes in it."""


def _mask_sources(path: Path, root: Path) -> list[Source[_Masked]]:
    if path.is_dir() and (folders := paired_folders(path, "masks")):
        names = class_names(path, path / "masks", root)
        return [(word, partial(_read_index_masks, images, masks, names)) for word, images, masks in folders]
    return [(word, partial(_read_coco_masks, file)) for word, file in coco_files(path)]


def _read_index_masks(images: Path, masks: Path, names: Sequence[str] | None, findings: Findings) -> Part[_Masked]:
    known = names or numbered(IGNORE)
    pairs = [(file, size, mask) for file, size, mask in findings.pairs(images, masks, ".png", "left out") if mask]
    found, largest = [], -1
    with quiet_decoders(), ThreadPoolExecutor(thread_count()) as pool:
        for (file, size, mask), seen in zip(pairs, pool.map(_look, [mask for *_, mask in pairs]), strict=True):
            if isinstance(seen, str):
                findings.add(mask, f"{seen}, so its image is left out")
                continue
            (width, height), numbers = seen
            if (width, height) != size:
                findings.add(mask, f"has {width} x {height} pixels, but its image has {size[0]} x {size[1]} upright")
                continue
            classes = [number for number in numbers if number < len(known)]
            if unknown := [number for number in numbers if number >= len(known) and number != IGNORE]:
                findings.add(mask, f"no class has the number {unknown[0]}, the last is {len(known) - 1}; ignored")
            largest = max(largest, *classes, -1)
            found.append(_Masked(file, size, mask, [known[number] for number in classes]))
    return Part(names or known[: largest + 1], found)


def _look(mask: Path) -> tuple[Size, list[int]] | str:
    """Return a mask's size and the numbers in it, or why it cannot be read."""
    try:
        numbers = read_indices(str(mask))
    except BadImageError as error:
        return str(error)
    height, width = numbers.shape
    return (width, height), np.flatnonzero(np.bincount(numbers.ravel())).tolist()


def _read_coco_masks(file: Path, findings: Findings) -> Part[_Masked]:
    classes, entries = read_coco(file, findings)
    found = []
    for entry in entries:
        regions: list[tuple[str, Any]] = []
        for annotation in entry.annotations:
            with findings.listing(file, where=annotation.where):
                segmentation, changed = _checked(annotation.content.get("segmentation"), entry.size)
                regions.append((annotation.name, segmentation))
                if changed:
                    raise BadLabelError("partly outside the image; clipped")
        found.append(_Masked(entry.file, entry.size, regions, [BACKGROUND, *(name for name, _ in regions)]))
    return Part([BACKGROUND, *classes], found)


def _checked(segmentation: Any, size: Size) -> tuple[Any, bool]:
    """Return a segmentation that can be drawn, and whether more than a pixel of it is outside the image.

    BadLabelError if it is none.
    """
    width, height = size
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise BadLabelError(f"run lengths of size {segmentation.get('size')}, not {[height, width]}")
        try:
            _draw([Region(1, segmentation)], size)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise BadLabelError(f"malformed run lengths: {' '.join(str(error).split())[:80]}") from error
        return segmentation, False
    if not isinstance(segmentation, list) or not segmentation:
        raise BadLabelError("neither polygons nor run lengths")
    polygons = [finite(polygon) for polygon in segmentation]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise BadLabelError("a polygon needs x and y of three points or more")
    xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
    _, changed = clip((min(xs), min(ys), max(xs), max(ys)), size)
    # Drawing clips by itself, but its memory grows with the length of the lines.
    limit = 2.0 * max(size)
    return [[min(max(value, -limit), limit) for value in polygon] for polygon in polygons], changed


def _draw(regions: Sequence[Region], size: Sequence[int]) -> NDArray[np.uint8]:
    """Return the (H, W) mask with the regions drawn in turn on class 0."""
    from faster_coco_eval.core import mask as coco  # here, as it loads OpenCV where there is one

    width, height = size
    drawn = np.zeros((height, width), np.uint8)
    for region in regions:
        inside = coco.decode(coco.segmToRle(region.segmentation, width, height))
        drawn[inside.astype(bool)] = region.label
    return drawn
