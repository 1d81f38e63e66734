"""Where in a folder the annotations lie, in which parts (train, test), and what the classes are called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from selfsight.data.annotations import CLASS_FILES, Findings, Problem, Size
from selfsight.data.decode import EXTENSIONS
from selfsight.data.listing import (
    SPLIT_WORDS,
    UNLABELLED_WORDS,
    VALIDATION_WORDS,
    is_split_word,
    part_word,
    two_way_split,
)
from selfsight.errors import SelfsightError

MAX_CLASSES = 10_000  # a larger number is a slip
PART_WORDS = SPLIT_WORDS | dict.fromkeys(VALIDATION_WORDS, "val")


class Labelled(Protocol):
    """One image with its labels, as a reader returns it."""

    @property
    def file(self) -> Path:
        """Absolute."""

    @property
    def size(self) -> Size:
        """Upright."""


T = TypeVar("T", bound=Labelled)


@dataclass(frozen=True)
class Part(Generic[T]):
    """What a reader found in one file or folder."""

    classes: Sequence[str]
    images: Sequence[T]


Source = tuple[str, Callable[[Findings], Part[T]]]
"""The name of the part ('' for a set without parts) and what reads it."""
Detect = Callable[[Path, Path], list[Source[T]]]
"""Returns what of the known formats lies in the first folder itself; class names may lie in the second."""


@dataclass(frozen=True)
class Everything(Generic[T]):
    """All parts of a data set, read and joined."""

    findings: Findings
    parts: Sequence[Part[T]]
    images: Sequence[T]
    classes: list[str]
    split: NDArray[np.str_] | None

    @property
    def files(self) -> list[str]:
        """(N,) absolute paths."""
        return [str(image.file) for image in self.images]

    @property
    def names(self) -> list[str]:
        """(N,) paths relative to the data set's folder."""
        return [self.findings.name(image.file) for image in self.images]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N, 2) width and height."""
        return np.array([image.size for image in self.images], np.int64)


def read_everything(path: str | Path, detect: Detect[T], strict: bool, part: str | None, wanted: str) -> Everything[T]:
    """Read the one part asked for, or all, of the formats that `detect` knows; `wanted` serves the message only.

    SelfsightError if there is no such path or part, no annotation or no image is left (of the train part, where there
    are parts), or, if `strict`, there is any problem.
    """
    start = Path(path).expanduser().absolute()
    if not start.exists():
        raise SelfsightError(f"{path}: no such file or folder")
    root = start if start.is_dir() else start.parent.parent if start.parent.name == "annotations" else start.parent
    findings = Findings(root)
    try:
        sources = _chosen(_in_parts(start, root, detect, findings), part, path)
        if not sources:
            raise SelfsightError(f"{path}: no {wanted}")
        read = [(word, found) for word, reader in sources if (found := _read(word, reader, findings))]
    except OSError as error:  # a folder that may not be listed, a file that goes while it is looked at
        raise SelfsightError(f"{path}: cannot be read: {error.strerror}") from error
    images = [image for _, found in read for image in found.images]
    words = [word for word, found in read for _ in found.images]
    split = two_way_split(words, str(path)) if len({word for word, _ in sources}) > 1 else None
    lost = "train" in {_part(word) for word, _ in sources} - {_part(word) for word in words}
    if not images or lost:
        where = " in the train part" if lost else ""
        raise SelfsightError(f"{path}: no image is left{where}" + (f"; {findings.first()}" if findings.found else ""))
    if strict and findings.found:
        raise SelfsightError(f"{path}: {findings.first()}")
    classes = list(dict.fromkeys(name for _, found in read for name in found.classes))
    return Everything(findings, [found for _, found in read], images, classes, split)


def part_folders(folder: Path) -> list[tuple[str, Path]]:
    """Return the subfolders named train, val, test or the like, in this order, as (name, folder)."""
    found = [(part_word(entry.name), entry) for entry in folder.iterdir() if entry.is_dir()]
    return in_order([(word, entry) for word, entry in found if is_split_word(word)])


def in_order(parts: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return train before val before test, so that the train part's classes are numbered first."""
    order = ["train", "val", "test"]
    return sorted(parts, key=lambda part: (order.index(PART_WORDS.get(part[0].lower(), "test")), part))


def paired_folders(folder: Path, beside: str) -> list[tuple[str, Path, Path]]:
    """Return (part, images, labels) if there are `images/` and the folder `beside` it.

    The parts may lie in these two: images/train, images/test. Left out are images/unlabeled, and a test part without
    labels beside a validation part with some, as COCO's. SelfsightError where something else lies beside train and
    test.
    """
    images, labels = folder / "images", folder / beside
    if not (images.is_dir() and labels.is_dir()):
        return []
    parts = part_folders(images)
    inner = [folder for _, folder in parts]
    others = [
        entry
        for entry in sorted(images.iterdir())
        if (entry.is_dir() or entry.suffix.lower() in EXTENSIONS)
        and not entry.name.startswith(".")
        and entry not in inner
        and part_word(entry.name) not in UNLABELLED_WORDS
    ]
    if len(parts) > 1 and others:
        named = " and ".join(entry.name for entry in inner)
        raise SelfsightError(f"{others[0]}: lies beside {named}; move it elsewhere")
    if not parts or others:
        return [("", images, labels)]
    found = [(word, folder, labels / folder.name) for word, folder in parts]
    held = {_part(word): there.is_dir() for word, _, there in found}
    hidden = held.get("val", False) and not held.get("test", True)
    return [part for part in found if not (hidden and _part(part[0]) == "test")]


def coco_files(path: Path) -> list[tuple[str, Path]]:
    """Return (part, file) for a .json file, or for those a folder or its `annotations/` holds under a usual name."""
    if path.is_file():
        return [("", path)] if path.suffix.lower() == ".json" else []
    for folder in (path, path / "annotations"):
        for pattern in ("annotations.json", "_annotations.coco.json", "instances*.json"):
            if files := [file for file in folder.glob(pattern) if file.is_file()]:
                words = [part_word(file.stem.removeprefix("instances").strip("_-")) for file in files]
                return in_order(list(zip(words if len(files) > 1 else [""], files, strict=True)))
    return []


def nothing(reason: str, _: Findings) -> Part[T]:
    """Read a part of which nothing can be used: raise SelfsightError with the reason."""
    raise SelfsightError(reason)


def class_names(*folders: Path) -> list[str] | None:
    """Return the names in the first file of class names in these folders, or None if there is none.

    SelfsightError if it cannot be read.
    """
    for file in (folder / name for folder in folders for name in CLASS_FILES):
        if not file.is_file():
            continue
        if file.suffix not in (".yaml", ".yml"):
            return [name.strip() for name in read_text(file).strip().splitlines()]
        if names := yaml_names(read_yaml(file), file):
            return names
    return None


def yaml_contents(*folders: Path) -> list[dict[Any, Any]]:
    """Return what is in each data.yaml of these folders; SelfsightError if one cannot be read."""
    files = dict.fromkeys(folder / name for folder in folders for name in CLASS_FILES if name.endswith(("yaml", "yml")))
    return [read_yaml(file) for file in files if file.is_file()]


def yaml_names(content: dict[Any, Any], file: Path) -> list[str]:
    """Return the `names` in the content of a data.yaml: a list, or a mapping of numbers to names; [] without any."""
    names = content.get("names")
    if isinstance(names, dict) and all(isinstance(key, int) and 0 <= key < MAX_CLASSES for key in names):
        return [str(names.get(number, f"class {number}")) for number in range(1 + max(names, default=-1))]
    if names is None or isinstance(names, list):
        return [str(name) for name in names or ()]
    raise SelfsightError(f"{file}: 'names' must be a list, or a mapping of numbers to names")


def numbered(count: int) -> list[str]:
    """Return names for classes that have none."""
    return [f"class {number}" for number in range(count)]


def read_text(file: Path) -> str:
    """Return the content of a text file; SelfsightError if it cannot be read."""
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SelfsightError(f"{file}: cannot be read: {error}") from error


def read_yaml(file: Path) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds; SelfsightError if it cannot be read or holds something else."""
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise SelfsightError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SelfsightError(f"{file}: holds no mapping such as 'names: [cat, dog]'")
    return content


def _in_parts(path: Path, root: Path, detect: Detect[T], findings: Findings) -> list[Source[T]]:
    """Return what lies in the path itself, else in its subfolders train, val and test."""
    sources = detect(path, root)
    if sources or not path.is_dir():
        return sources
    found = [(word, folder, detect(folder, root)) for word, folder in part_folders(path)]
    if not any(inner for _, _, inner in found):
        return []
    for word, folder, inner in found:
        sources += [(word, reader) for _, reader in inner] or [
            (word, partial(nothing, f"{findings.name(folder)}: no annotations of a known format"))
        ]
    return sources


def _chosen(sources: list[Source[T]], part: str | None, path: str | Path) -> list[Source[T]]:
    if part is None or not sources:
        return sources
    chosen = [source for source in sources if source[0] and _part(source[0]) == _part(part)]
    if not chosen:
        words = ", ".join(dict.fromkeys(word for word, _ in sources if word)) or "no parts"
        raise SelfsightError(f"{path}: has no part {part!r}; it has {words}")
    return chosen


def _part(word: str) -> str:
    return PART_WORDS.get(word.lower(), word)


def _read(word: str, reader: Callable[[Findings], Part[T]], findings: Findings) -> Part[T] | None:
    """Return the part, None if nothing of it can be used while others may."""
    try:
        return reader(findings)
    except SelfsightError as error:
        if not word:
            raise
        findings.found.append(Problem(word, None, str(error)))
        return None
