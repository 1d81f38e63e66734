"""Boxes as COCO, YOLO and Pascal VOC write them."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from selfsight.data.annotations import SHOWS_NOTHING, BadLabelError, Box, Findings, Size, clip, finite
from selfsight.data.coco import read_coco
from selfsight.data.decode import EXTENSIONS
from selfsight.data.parts import (
    MAX_CLASSES,
    Part,
    Source,
    class_names,
    coco_files,
    nothing,
    numbered,
    paired_folders,
    part_folders,
    read_yaml,
    yaml_contents,
    yaml_names,
)
from selfsight.errors import SelfsightError


@dataclass(frozen=True)
class Drawn:
    """An image and the boxes drawn on it."""

    file: Path
    size: Size
    boxes: list[Box] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of the class of each box."""

    def draw(self, name: str, box: Box) -> None:
        """Add the part of the box inside the image; BadLabelError tells if that is not the whole box."""
        inside, changed = clip(box, self.size)
        self.boxes.append(inside)
        self.names.append(name)
        if changed:
            raise BadLabelError("partly outside the image; clipped")


def box_sources(path: Path, root: Path) -> list[Source[Drawn]]:
    """Return what reads the boxes that lie in this folder or file, of the first format that fits."""
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return _yaml_sources(path)
    if files := coco_files(path):
        return [(word, partial(read_coco_boxes, file)) for word, file in files]
    if path.is_file():
        return []
    around = path, path / "labels", root
    names = partial(class_names, *around)
    if folders := paired_folders(path, "labels"):
        yolo = partial(read_yolo, pose=any("kpt_shape" in content for content in yaml_contents(*around)))
        return [(word, partial(yolo, images, labels, names())) for word, images, labels in folders]
    for folder in (path / "Annotations", path / "annotations", path):
        if any(folder.glob("*.xml")):
            places = [place for place in (path / "JPEGImages", path / "images") if place.is_dir()]
            return [("", partial(read_voc, folder, places or [folder, path], names()))]
    for name in ("data.yaml", "data.yml"):
        if (path / name).is_file() and not part_folders(path):
            return _yaml_sources(path / name)
    return []


def read_coco_boxes(file: Path, findings: Findings) -> Part[Drawn]:
    """Read a COCO file; bbox is x, y, width, height from the image's corner. Crowds (iscrowd 1) are left out."""
    classes, found = read_coco(file, findings)
    images = []
    for entry in found:
        image = Drawn(entry.file, entry.size)
        for annotation in entry.annotations:
            if annotation.content.get("iscrowd"):
                continue
            with findings.listing(file, where=annotation.where):
                x, y, width, height = finite(annotation.content.get("bbox"), 4)
                image.draw(annotation.name, (x, y, x + width, y + height))
        images.append(image)
    return Part(classes, images)


def read_yolo(
    images: Path, labels: Path, names: Sequence[str] | None, findings: Findings, pose: bool = False
) -> Part[Drawn]:
    """Read a folder of images and that of their labels: lines `class cx cy w h`, or `class x y x y x y …`.

    Coordinates are shares of the upright image's width and height; of a polygon the bounding box is taken. With `pose`
    lines are `class cx cy w h`, and behind it points of a body, which are left out. Without
    names the classes are 'class 0' and so on, up to the largest number found. An image whose file is empty shows
    nothing, which is no problem; one without a file is listed.
    """
    known = names or numbered(MAX_CLASSES)
    drawn = []
    for file, size, label in findings.pairs(images, labels, ".txt", SHOWS_NOTHING):
        image = Drawn(file, size)
        if label:
            try:
                lines = label.read_text("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                findings.add(label, f"cannot be read, so its image is left out: {error}")
                continue
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with findings.listing(label, number):
                        image.draw(*_yolo_box(line.split()[: 5 if pose else None], size, known))
        drawn.append(image)
    used = {name for image in drawn for name in image.names}
    count = max((number + 1 for number, name in enumerate(known) if name in used), default=0)
    return Part(names or known[:count], drawn)


def read_voc(folder: Path, places: Sequence[Path], names: Sequence[str] | None, findings: Findings) -> Part[Drawn]:
    """Read a folder of Pascal VOC's .xml files, whose images lie in one of `places`.

    Coordinates count pixels from 1, and xmax and ymax are the last pixels inside: xmin 1, xmax 10 are the ten pixels
    from x0 = 0 to x1 = 10. Difficult objects are kept. An image is found by the name of its .xml file, else by the
    `filename` in it. Without `names` the classes found are sorted. Images without .xml are kept and listed.
    """
    files = {file.name: file for place in reversed(places) for file in sorted(place.iterdir()) if _is_image(file)}
    stems = {file.stem: file for file in files.values()}
    trees: list[tuple[Path, Path, ElementTree.Element]] = []
    described: set[Path | None] = set()
    found = sorted(folder.glob("*.xml"))
    own = {xml.stem for xml in found}
    for xml in found:
        file = stems.get(xml.stem)
        described.add(file)
        try:
            tree = ElementTree.parse(xml).getroot()
        except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
            line = error.position[0] if isinstance(error, ElementTree.ParseError) else None
            findings.add(xml, f"cannot be read as XML, so its image is left out: {error}", line)
            continue
        named = Path(tree.findtext("filename") or "").name
        if file is None and Path(named).stem not in own:  # else it is a copy's: that image has its own .xml
            file = files.get(named)
            described.add(file)
        if file is None:
            findings.add(xml, f"its image {named or xml.stem} is missing")
        else:
            trees.append((xml, file, tree))
    bare = [file for file in files.values() if file not in described]
    sizes = findings.measure([*dict.fromkeys(file for _, file, _ in trees), *bare])
    images = []
    for xml, file, tree in trees:
        stated = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        if file in sizes and findings.fits(file, sizes[file], stated):
            images.append(_voc_image(xml, Drawn(file, sizes[file]), tree, names, findings))
    for file in bare:
        if file in sizes:
            findings.add(file, f"no annotation: {SHOWS_NOTHING}")
            images.append(Drawn(file, sizes[file]))
    used = sorted({name for image in images for name in image.names})
    return Part(names or used, sorted(images, key=lambda image: image.file))


def _yaml_sources(file: Path) -> list[Source[Drawn]]:
    """Return the folders that a data.yaml names under train, val and test."""
    content = read_yaml(file)
    base = file.parent / str(content.get("path") or "")
    names = yaml_names(content, file) or class_names(file.parent)
    pose = "kpt_shape" in content
    sources: list[Source[Drawn]] = []
    for word in ("train", "val", "valid", "test"):
        entries = content.get(word) or []
        for entry in map(str, entries if isinstance(entries, list) else [entries]):
            # Some tools write ../train/images for a folder beside the file.
            inside = entry.removeprefix("../")
            candidates = (base / entry, file.parent / entry, base / inside, file.parent / inside)
            images = next((folder for folder in candidates if folder.is_dir()), None)
            if images is None:
                sources.append((word, partial(nothing, f"{file}: {word}: no such folder {entry}")))
                continue
            images = images / "images" if (images / "images").is_dir() else images
            sources.append((word, partial(read_yolo, images, _labels_of(images), names, pose=pose)))
    if not sources:
        raise SelfsightError(f"{file}: names no folder under 'train', 'val' or 'test'")
    return sources


def _labels_of(images: Path) -> Path:
    """Return the folder with `labels` for the last `images` in the path; without one, labels lie beside the images."""
    parts = list(images.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    labels = Path(*parts)
    return labels if labels.is_dir() else images


def _yolo_box(words: Sequence[str], size: Size, names: Sequence[str]) -> tuple[str, Box]:
    number, *places = finite(words)
    if number % 1 or not 0 <= number < len(names):
        raise BadLabelError(f"unknown class {words[0]}")
    width, height = size
    if len(places) == 4:
        x, y, w, h = places
        return names[int(number)], (
            (x - w / 2) * width,
            (y - h / 2) * height,
            (x + w / 2) * width,
            (y + h / 2) * height,
        )
    if len(places) < 6 or len(places) % 2:
        raise BadLabelError(f"{len(words)} numbers; a box has 5, a polygon 7, 9 or more")
    xs, ys = places[::2], places[1::2]
    return names[int(number)], (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)


def _voc_image(
    xml: Path, image: Drawn, tree: ElementTree.Element, names: Sequence[str] | None, findings: Findings
) -> Drawn:
    for number, item in enumerate(tree.findall("object"), 1):
        name = (item.findtext("name") or "").strip()
        with findings.listing(xml, where=f"object {number}"):
            if not name or (names and name not in names):
                raise BadLabelError(f"unknown class {name!r}")
            x0, y0, x1, y1 = finite([item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")], 4)
            image.draw(name, (x0 - 1, y0 - 1, x1, y1))
    return image


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
