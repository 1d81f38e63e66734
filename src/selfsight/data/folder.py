"""A folder of images, at any depth: which files it holds, and what its subfolders say of them."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from selfsight.data.decode import EXTENSIONS, not_a_file, of_another_kind
from selfsight.data.images import Skipped
from selfsight.data.listing import (
    UNLABELLED_WORDS,
    Listing,
    index_labels,
    is_split_word,
    part_word,
    two_way_split,
)
from selfsight.errors import SelfsightError

OWN = (
    {"config.json", "metrics.csv"},
    {"config.json", "method.safetensors"},
    {"config.json", "training.lock"},
    {".predicted"},
)
"""Of the folders that selfsight writes each holds one of these sets of files."""
SAMPLED, BEGINNING = 16, 65_536
"""Of so many files so many bytes tell one set of images from another of the same names, sizes and times."""


def list_folder(folder: Path) -> Listing:
    """Return the images under the folder, sorted by path.

    First-level subfolders are the classes if there are two or more and every image lies in one.
    Subfolders train and test (or val), holding everything, are the split, and the classes lie in them; images in one
    that is named unlabeled are train images without a label. SelfsightError if there is no image, or where something
    else lies beside train and test.
    """
    names, skipped = _walk(folder)
    if not names:
        raise SelfsightError(f"{folder}: {_why_empty(folder, skipped)}")
    shown = [printable(name) for name in names]
    parts = [name.split("/") for name in shown]
    tops = [part[0] if len(part) > 1 else "" for part in parts]
    bare = np.array([part_word(top) in UNLABELLED_WORDS for top in tops])
    words = {top for top in tops if is_split_word(top)}
    odd = next((i for i, top in enumerate(tops) if not is_split_word(top) and not bare[i]), None)
    if len(words) > 1 and odd is not None:
        raise SelfsightError(f"{folder}: {shown[odd]} lies beside {' and '.join(sorted(words))}; move it elsewhere")
    split, depth = None, 0
    if words and odd is None and len(set(tops)) > 1:
        named = ["train" if none else top for top, none in zip(tops, bare, strict=True)]
        split, depth = two_way_split(named, str(folder)), 1
        split = split if len(set(split)) > 1 else None
    bare &= depth > 0  # a folder of that name without train and test beside it is one of the user's own
    labels, classes = index_labels(
        ["" if none or len(part) < depth + 2 else part[depth] for part, none in zip(parts, bare, strict=True)]
    )
    if labels is not None and ((labels[~bare] < 0).any() or len(classes) < 2):
        labels, classes = None, []
    files = [str(folder.absolute() / name) for name in names]
    return Listing(str(folder), files, shown, labels, classes, split, skipped, identify(names, files))


def list_files(files: Sequence[str | Path]) -> Listing:
    """Return these images, named by their paths below the folder that holds them all; SelfsightError if one is none."""
    paths = [Path(file).expanduser().absolute() for file in files]
    for file, path in zip(files, paths, strict=True):
        if reason := not_a_file(str(path)):
            raise SelfsightError(f"{file}: {reason}")
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(folder).as_posix() for path in paths]
    kept = [str(path) for path in paths]
    source = str(files[0]) if len(files) == 1 else f"{len(files)} files in {folder}"
    return Listing(source, kept, [printable(name) for name in names], identity=identify(names, kept))


def identify(names: list[str], files: list[str]) -> str:
    """Return a hash that changes when a file is added, removed, renamed, resized, written or made readable.

    The beginnings of some files are in it: archives unpack with the same times, and may have the same names and sizes.
    """
    digest = hashlib.sha256()
    for at in np.linspace(0, len(files) - 1, min(len(files), SAMPLED)).astype(int):
        with suppress(OSError), Path(files[at]).open("rb") as opened:
            digest.update(opened.read(BEGINNING))
    for name, file in zip(names, files, strict=True):
        status = Path(file).stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{os.access(file, os.R_OK)}\n"))
    return digest.hexdigest()


def printable(name: str) -> str:
    """Return the name with bytes that are not UTF-8 replaced, so that it can be written to a table."""
    return os.fsencode(name).decode("utf-8", "replace")


def _walk(folder: Path) -> tuple[list[str], list[Skipped]]:
    """Return the relative names of all images and what had to be left out, both sorted."""
    names: list[str] = []
    skipped: list[Skipped] = []

    def relative(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    def refused(error: OSError) -> None:
        skipped.append(Skipped(printable(relative(Path(error.filename))), (error.strerror or "").lower()))

    visited: set[str] = set()
    # Links to folders wait until the real folders are done, so that a link never takes a folder's name.
    waiting = [folder]
    while waiting:
        for root, folders, files in os.walk(waiting.pop(0), onerror=refused):
            real = os.path.realpath(root)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            here = Path(root)
            if here != folder and any(mark <= set(files) for mark in OWN):
                skipped.append(
                    Skipped(printable(relative(here)), "was written by selfsight: its pictures are not yours")
                )
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in [*folders, *files]:
                path = here / name
                if name.startswith(".") or (path.suffix.lower() not in EXTENSIONS and not of_another_kind(name)):
                    continue
                if of_another_kind(name):
                    if not path.is_dir():
                        words = f"{path.suffix.lower()} is not read; save it as PNG or TIFF"
                        skipped.append(Skipped(printable(relative(path)), words))
                    continue
                if reason := not_a_file(str(path)):
                    skipped.append(Skipped(printable(relative(path)), reason))
                else:
                    names.append(relative(path))
            folders[:] = [name for name in folders if Path(name).suffix.lower() not in EXTENSIONS]
            waiting += [here / name for name in folders if (here / name).is_symlink()]
    return sorted(names), sorted(skipped, key=lambda skip: skip.name)


def _why_empty(folder: Path, skipped: list[Skipped]) -> str:
    if skipped:
        return f"no readable image; for example {skipped[0].name}: {skipped[0].reason}"
    kinds = sorted({file.suffix for file in folder.rglob("*") if file.is_file() and file.suffix})
    return "no images in this folder" + (f", only {', '.join(kinds[:5])}" if kinds else "; it is empty")
