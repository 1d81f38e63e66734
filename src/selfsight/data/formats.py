"""Data sets that are no folder of images: IDX pairs, .npz, tables of paths, arrays, objects of other libraries."""

import csv
import gzip
import io
import math
import threading
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsight.data.decode import BadImageError, Picture, bands_last, fetch, not_a_file
from selfsight.data.folder import identify, printable
from selfsight.data.images import Skipped
from selfsight.data.listing import Listing, index_labels, two_way_split
from selfsight.errors import SelfsightError
from selfsight.progress import say

TABLES = (".csv", ".csv.gz", ".parquet")
_IDX_IMAGES = "-images-idx3-ubyte"
_IDX_LABELS = "-labels-idx1-ubyte"


def is_idx(path: Path) -> bool:
    """Return whether this is a folder with IDX files as MNIST is published, or such a file of images."""
    return bool(_idx_images(path)) if path.is_dir() else _IDX_IMAGES in _dashed(path)


def read_idx(path: Path) -> Listing:
    """Read the pair(s) of images and labels: `train-…` and `t10k-…` in a folder, or the one file's.

    SelfsightError for a file that is missing, damaged or not IDX.
    """
    parts = []
    for file in _idx_images(path) if path.is_dir() else [path]:
        images = _read_idx_file(file, 3)
        wanted = _dashed(file).replace(_IDX_IMAGES, _IDX_LABELS)
        beside = [other for other in file.parent.iterdir() if _dashed(other) == wanted and other.is_file()]
        labels = _read_idx_file(beside[0], 1) if beside else None
        parts.append(("train" if _is_train(file) else "test", images, labels))
    return from_parts(str(path), parts if len(parts) > 1 else [("", *parts[0][1:])])


def read_npz(path: Path) -> Listing:
    """Read an .npz with `images` and perhaps `labels` and `split`, or with `train_images`, `test_labels` and so on.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W). SelfsightError if they are not, or the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SelfsightError(f"{path}: cannot be read as .npz: {' '.join(str(error).split())}") from error
    parts = [
        (word, content[f"{word}_images"], content.get(f"{word}_labels"))
        for word in ("train", "val", "test")
        if f"{word}_images" in content
    ]
    if parts:
        return from_parts(str(path), parts)
    if "images" not in content:
        keys = ", ".join(content) or "nothing"
        raise SelfsightError(f"{path}: needs an array 'images' (or 'train_images', 'test_images'); it holds {keys}")
    split = content.get("split")
    return from_parts(
        str(path), [("", content["images"], content.get("labels"))], None if split is None else split.astype(str)
    )


def from_parts(
    source: str,
    parts: Sequence[tuple[str, NDArray[Any], NDArray[Any] | None]],
    split: NDArray[np.str_] | None = None,
) -> Listing:
    """Return the listing of (name of the part, images, labels or None); '' names a set that has no parts."""
    shaped = []
    for _, images, labels in parts:
        if (
            images.ndim not in (3, 4)
            or not images.size
            or not (np.issubdtype(images.dtype, np.number) or images.dtype == bool)
        ):
            raise SelfsightError(
                f"{source}: images must be numbers (N, H, W) or (N, H, W, C), not {images.dtype} {images.shape}"
            )
        if labels is not None and len(labels) != len(images):
            raise SelfsightError(f"{source}: {len(images)} images but {len(labels)} labels")
        try:
            shaped.append(bands_last(images) if images.ndim == 4 else images)
        except BadImageError as error:
            raise SelfsightError(f"{source}: {error}") from error
    if len({images.shape[1:] for images in shaped}) > 1:
        raise SelfsightError(f"{source}: the parts differ in shape: {', '.join(str(i.shape) for i in shaped)}")
    texts = [_label_texts(labels, len(images)) for _, images, labels in parts]
    labels, classes = index_labels([text for part in texts for text in part])
    words = [word for word, images, _ in parts for _ in range(len(images))]
    if split is not None and len(split) != len(words):
        raise SelfsightError(f"{source}: {len(words)} images but {len(split)} entries in 'split'")
    if split is None and len(parts) > 1:
        split = np.array(words)
    names = [f"{word}/{row}" if word else str(row) for word, images, _ in parts for row in range(len(images))]
    pictures = shaped[0] if len(shaped) == 1 else np.concatenate(shaped)
    return Listing(
        source, pictures, names, labels, classes, None if split is None else two_way_split(split.tolist(), source)
    )


def is_table(path: Path) -> bool:
    """Return whether the name is that of a CSV or Parquet file."""
    return path.name.lower().endswith(TABLES)


def read_table(path: Path) -> Listing:
    """Read a CSV or Parquet file with the column path, and perhaps label, split and group.

    Relative paths start at the table's folder. Files that are missing are skipped.
    SelfsightError without a column path, without rows, or if the file cannot be read.
    """
    columns = _parquet_columns(path) if path.suffix.lower() == ".parquet" else _csv_columns(path)
    if "path" not in columns:
        found = ", ".join(list(columns)[:5])[:80]
        raise SelfsightError(
            f"{path}: needs a column 'path' (and may have 'label', 'split', 'group'); its columns are {found}"
        )
    files = [str((path.parent / entry).absolute()) for entry in columns["path"]]
    reasons = [not_a_file(file) for file in files]
    names = [printable(entry) for entry in columns["path"]]
    skipped = [Skipped(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
    kept = [row for row, reason in enumerate(reasons) if not reason]
    if not kept:
        example = f"; for example {skipped[0].name}: {skipped[0].reason}" if skipped else ", it has no rows"
        raise SelfsightError(f"{path}: no image of this table is there{example}")
    columns = {key: [values[row] for row in kept] for key, values in columns.items()}
    files, names = [files[row] for row in kept], [names[row] for row in kept]
    labels, classes = index_labels(columns.get("label", [""] * len(kept)))
    split = two_way_split(columns["split"], str(path)) if "split" in columns else None
    groups = None
    if "group" in columns:  # an image without one is a group of its own
        texts = [text or f"\0{row}" for row, text in enumerate(columns["group"])]
        groups = np.unique(texts, return_inverse=True)[1].astype(np.int64)
    return Listing(str(path), files, names, labels, classes, split, skipped, identify(names, files), groups)


def from_object(data: Any) -> Listing:
    """Return the listing of an array, a Hugging Face or a torchvision-style data set, or a dict of such by part.

    SelfsightError for anything else.
    """
    if isinstance(data, np.ndarray):
        return from_parts("array", [("", data, None)])
    kind = _called(data)
    if any(map(_transforms, data.values() if isinstance(data, Mapping) else [data])):
        say(
            f"{kind}: its transform is applied once to each image, when it is read. Methods draw their own views, so "
            "leave random crops and Normalize out of it."
        )
    if isinstance(data, Mapping) and data and all(hasattr(part, "features") for part in data.values()):
        return _join([(str(word), _from_hugging_face(part, kind)) for word, part in data.items()], kind)
    if (
        isinstance(data, Mapping)
        and data
        and all(
            hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, str)
            for part in data.values()
        )
    ):
        return _join([(str(word), _from_torchvision(part, kind)) for word, part in data.items()], kind)
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return _from_hugging_face(data, kind)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, Mapping | bytes):
        return _from_torchvision(data, kind)
    raise SelfsightError(
        f"{kind}: not a data set; pass a folder, an .npz, a table, an array, or a torchvision or Hugging Face data set"
    )


def _called(data: Any) -> str:
    """Return what messages and results call an object: a Hugging Face set's own name, or its kind; and its part."""
    name = getattr(getattr(data, "info", None), "dataset_name", None) or type(data).__name__
    split, train = getattr(data, "split", None), getattr(data, "train", None)
    if isinstance(train, bool):
        split = "train" if train else "test"
    return name if split is None or callable(split) else f"{name} {split}"


def _transforms(data: Any) -> bool:
    """Return whether a set of torchvision or Hugging Face changes its images when they are asked for."""
    form = getattr(data, "format", None)
    custom = isinstance(form, Mapping) and form.get("type") == "custom"
    return custom or getattr(data, "transform", None) is not None


class _Items:
    """Pictures of other libraries' data sets; one thread at a time, as few of these promise more."""

    def __init__(self, parts: Sequence[Any], key: str | None) -> None:
        self.parts, self.key = parts, key
        self.ends = np.cumsum([len(part) for part in parts])
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, row: int, /) -> Picture:
        part = int(np.searchsorted(self.ends, row, side="right"))
        data = self.parts[part]
        with self.lock:
            item = data[int(row - self.ends[part] + len(data))]
        if self.key is not None:
            item = item[self.key]
        elif isinstance(item, tuple | list):
            item = item[0]
        if item is None:
            raise BadImageError("no image in this row")
        picture: Picture = item
        return picture


def _from_hugging_face(data: Any, kind: str) -> Listing:
    if not hasattr(data, "__len__"):
        raise SelfsightError(f"{kind}: is a stream, whose images have no number; load it without streaming=True")
    key = next((name for name in ("image", "img", "images") if name in data.column_names), None)
    if key is None:
        raise SelfsightError(f"{kind}: needs a column 'image'; its columns are {', '.join(data.column_names)}")
    if not len(data):
        raise SelfsightError(f"{kind}: has no rows")
    labels, classes = None, []
    of_classes = [name for name in data.column_names if getattr(data.features[name], "names", None)]
    column = "label" if "label" in data.column_names else of_classes[0] if len(of_classes) == 1 else None
    if column is None and of_classes:
        say(f"{kind}: without labels, as several columns have classes: call one of {', '.join(of_classes)} 'label'")
    if column is not None:
        feature_names = getattr(data.features[column], "names", None)
        values = list(data[column])
        if feature_names:
            labels, classes = np.array([-1 if v is None else v for v in values], np.int64), list(feature_names)
        elif all(v is None or isinstance(v, int | float) for v in values):
            labels, classes = index_labels(_label_texts(np.array([-1 if v is None else v for v in values]), len(data)))
        else:
            labels, classes = index_labels(["" if v is None else str(v) for v in values])
    identity = getattr(data, "_fingerprint", None)  # the library's own hash of content and transforms
    names = [str(row) for row in range(len(data))]
    return Listing(kind, _Items([data], key), names, labels, classes, identity=identity)


def _from_torchvision(data: Any, kind: str) -> Listing:
    if not len(data):
        raise SelfsightError(f"{kind}: has no images")
    targets = getattr(data, "targets", None)  # spares decoding every image for its label
    if targets is None or len(targets) != len(data):
        targets = [_target(data, row) for row in range(len(data))]
    if not all(map(_names_a_class, targets)):
        return Listing(kind, _Items([data], None), [str(row) for row in range(len(data))])
    numbers = np.asarray([-1 if target is None else np.asarray(target).item() for target in targets])
    labels, classes = index_labels(_label_texts(numbers, len(data)))
    if labels is not None and getattr(data, "classes", None) and np.issubdtype(numbers.dtype, np.integer):
        labels, classes = numbers.astype(np.int64), [str(name) for name in data.classes]
    return Listing(kind, _Items([data], None), [str(row) for row in range(len(data))], labels, classes)


def _names_a_class(target: Any) -> bool:
    """Return whether this is a number or a text; boxes, a dict or the path of an annotation file are of other tasks."""
    if isinstance(target, str):
        return not target.endswith((".xml", ".png", ".txt", ".json", ".mat"))
    return target is None or isinstance(target, int | float) or math.prod(getattr(target, "shape", (0,))) == 1


def _target(data: Any, row: int) -> Any:
    """Return the label of an item, None if it has none or cannot be read."""
    try:
        item: Any = fetch(data, row)
    except BadImageError:
        return None
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None


def _join(parts: Sequence[tuple[str, Listing]], kind: str) -> Listing:
    """Return one listing of several parts whose names are those of a split."""
    listings = [listing for _, listing in parts]
    items = [listing.pictures for listing in listings]
    key = items[0].key if isinstance(items[0], _Items) else None
    given = [listing.labels for listing in listings if listing.labels is not None]
    labels: NDArray[np.int64] | None
    classes: Sequence[str]
    if len(given) == len(parts) and all(listing.classes == listings[0].classes for listing in listings):
        labels, classes = np.concatenate(given), listings[0].classes
    else:  # a part that lacks a class, or all labels
        labels, classes = index_labels([name for listing in listings for name in _class_names(listing)])
    identities = [listing.identity for listing in listings]
    return Listing(
        kind,
        _Items([data for item in items if isinstance(item, _Items) for data in item.parts], key),
        [f"{word}/{name}" for word, listing in parts for name in listing.names],
        labels,
        classes,
        two_way_split([word for word, listing in parts for _ in listing.names], kind) if len(parts) > 1 else None,
        identity=None if None in identities else " ".join(map(str, identities)),
    )


def _class_names(listing: Listing) -> list[str]:
    """Return each picture's class, '' where it has none."""
    if listing.labels is None:
        return [""] * len(listing.names)
    return [listing.classes[label] if label >= 0 else "" for label in listing.labels]


def _label_texts(labels: NDArray[Any] | None, count: int) -> list[str]:
    """Return one text an image, '' for unknown; labels of several columns are no classes and count as none."""
    if labels is None or labels.size != count:
        return [""] * count
    flat = labels.reshape(count)
    if np.issubdtype(flat.dtype, np.number):
        # A NaN is neither; 1.0 is the class 1, and 1.5 one of its own.
        return [str(int(v) if v == int(v) else v) if v >= 0 else "" for v in flat.tolist()]
    return [str(value) for value in flat]


def _dashed(file: Path) -> str:
    """Return the name without .gz; some mirrors write a dot for the dash in `train-images.idx3-ubyte`."""
    return file.name.removesuffix(".gz").replace(".idx", "-idx")


def _is_train(file: Path) -> bool:
    return "train" in file.name.split("-")  # emnist-letters-train-images-idx3-ubyte.gz


def _idx_images(folder: Path) -> list[Path]:
    """Return the folder's files of images, train first, each once though it lie there zipped and unzipped."""
    found = {
        _dashed(file): file
        for file in sorted(folder.iterdir(), reverse=True)
        if _dashed(file).endswith(_IDX_IMAGES) and file.is_file()  # some archives hold folders of the same names
    }
    return [found[name] for name in sorted(found, key=lambda name: (not _is_train(found[name]), name))]


def _read_idx_file(file: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise SelfsightError(f"{file}: cannot be read: {error}") from error
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise SelfsightError(f"{file}: not an IDX file of unsigned bytes with {dimensions} dimension(s)")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    if len(content) != start + shape.prod():
        raise SelfsightError(f"{file}: truncated: {len(content)} bytes where its header tells {start + shape.prod()}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _csv_columns(path: Path) -> dict[str, list[str]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SelfsightError(f"{path}: cannot be read as CSV: {error}") from error
    if not rows:
        raise SelfsightError(f"{path}: empty file")
    header = [name.strip().lower() for name in rows[0]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise SelfsightError(f"{path}: row {number} has {len(row)} columns where the header has {len(header)}")
    return {name: [row[column].strip() for row in rows[1:]] for column, name in enumerate(header)}


def _parquet_columns(path: Path) -> dict[str, list[str]]:
    import pyarrow.parquet  # only now: it takes a while to load

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise SelfsightError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
    wanted: Iterable[str] = [name for name in table.column_names if name.lower() in ("path", "label", "split", "group")]
    columns = {name.lower(): ["" if v is None else str(v) for v in table[name].to_pylist()] for name in wanted}
    return columns or {name: [] for name in table.column_names}
