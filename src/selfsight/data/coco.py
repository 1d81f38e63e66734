"""COCO: one JSON file of images, categories, and annotations that name both by their ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsight.data.annotations import SHOWS_NOTHING, Findings, Size
from selfsight.errors import SelfsightError


@dataclass(frozen=True)
class Annotation:
    """One object of an image."""

    where: str
    """For messages: 'annotation' and its id."""
    name: str
    """Of its class."""
    content: dict[str, Any]


@dataclass(frozen=True)
class CocoImage:
    """An image and its annotations in the order of the file."""

    file: Path
    size: Size
    annotations: list[Annotation] = field(default_factory=list)


def read_coco(file: Path, findings: Findings) -> tuple[list[str], list[CocoImage]]:
    """Return the classes in order of their ids, and the images.

    Image files are looked for beside the file (or beside its folder `annotations`), in `images/`, and in a folder
    named like the part: `train2017/` for instances_train2017.json. Files that the JSON does not name are no part of
    the set. Images without any annotation are kept and listed. SelfsightError if the file is not COCO's JSON.
    """
    content = _load(file)
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda c: c["id"])}
        entries, annotations = list(content["images"]), list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise SelfsightError(f"{file}: not COCO: needs lists 'images', 'annotations' and 'categories'") from error
    images, known = _images(file, entries, findings)
    annotated = set()
    for number, entry in enumerate(annotations):
        where = f"annotation {entry.get('id', f'number {number}') if isinstance(entry, dict) else f'number {number}'}"
        try:
            image_id, name = entry["image_id"], categories.get(entry["category_id"])
            annotated.add(image_id)
        except (KeyError, TypeError):
            findings.add(file, f"{where}: needs 'image_id' and 'category_id'")
            continue
        if image_id not in known:
            findings.add(file, f"{where}: unknown image id {image_id!r}")
        elif name is None:
            findings.add(file, f"{where}: unknown class, category_id {entry['category_id']!r}")
        elif image_id in images:
            images[image_id].annotations.append(Annotation(where, name, entry))
    for image_id, image in images.items():
        if image_id not in annotated:
            findings.add(image.file, f"no annotation: {SHOWS_NOTHING}")
    return list(categories.values()), list(images.values())


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SelfsightError(f"{file}: cannot be read as JSON: {error}") from error


def _images(file: Path, entries: Sequence[Any], findings: Findings) -> tuple[dict[Any, CocoImage], set[Any]]:
    """Return the usable images by id, and the ids of all."""
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    part = file.stem.removeprefix("instances").strip("_-")
    folders = [*dict.fromkeys([file.parent, base, base / "images", base / part, base / "images" / part])]
    files: dict[Any, Path] = {}
    stated: dict[Any, tuple[Any, Any]] = {}
    for number, entry in enumerate(entries):
        try:
            image_id, name = entry["id"], str(entry["file_name"])
            twice = image_id in files
            candidates = [folder / name for folder in folders]
            files[image_id] = next((path for path in candidates if path.is_file()), base / name)
            stated[image_id] = (entry.get("width"), entry.get("height"))
        except (KeyError, TypeError):
            findings.add(file, f"image number {number}: needs 'id' and 'file_name'")
            continue
        if twice:
            findings.add(file, f"image id {image_id!r} is given twice; the later holds")
    sizes = findings.measure(list(dict.fromkeys(files.values())))
    images = {
        image_id: CocoImage(path, sizes[path])
        for image_id, path in files.items()
        if path in sizes and findings.fits(path, sizes[path], stated[image_id])
    }
    return images, set(files)
