"""BoxSet: images with the boxes of the objects in them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsight.data.annotations import Annotated
from selfsight.data.box_formats import box_sources
from selfsight.data.cache import whole_file
from selfsight.data.parts import read_everything
from selfsight.errors import SelfsightError


@dataclass(frozen=True, kw_only=True)
class BoxSet(Annotated):
    """The images of a data set and the boxes in them; an image may have none."""

    boxes: Sequence[NDArray[np.float32]]
    """(N,) arrays (n, 4): x0, y0, x1, y1 in pixels of the upright image, the right edge of the last pixel at width."""
    labels: Sequence[NDArray[np.int64]]
    """(N,) arrays (n,): index into `classes`."""

    @property
    def present(self) -> list[NDArray[np.int64]]:
        """(N,) arrays: the classes that occur in each image."""
        return [np.unique(labels) for labels in self.labels]

    def label_bytes(self, row: int) -> bytes:
        """Return what an image's label consists of: other bytes, another label."""
        return self.boxes[row].tobytes() + self.labels[row].tobytes()


def open_boxes(path: str | Path, *, strict: bool = False, part: str | None = None) -> BoxSet:
    """Return the boxes of a COCO, YOLO or Pascal VOC data set, which is found out.

    - COCO: a .json file, or a folder with `annotations.json`, `_annotations.coco.json` or `instances*.json` in it or in
      its `annotations/`; images beside it or in `images/`. Crowds are left out. Classes are in order of their ids.
    - YOLO: a folder with `images/` and `labels/`, or a data.yaml that names such under train, val and test.
      Class names come from data.yaml, data.yml, classes.txt or obj.names.
    - Pascal VOC: .xml files beside the images, or `Annotations/` with `JPEGImages/` or `images/`. Coordinates count
      pixels from 1 and include the last one, as VOC defines them.
    - A folder with the subfolders train and test (or val), each in one of these formats; `part` reads that one alone.

    What is wrong with a label is listed in `problems`: a box partly outside its image is clipped (a pixel passes in
    silence), other wrong labels are left out, as are images that are missing, whose header cannot be read, or whose
    labels cannot be read at all. Images without annotation are kept, without boxes. Pixels are not decoded.

    SelfsightError if there is no such data set or part, no box is left, or, if `strict`, there is any problem.
    """
    found = read_everything(
        path,
        box_sources,
        strict,
        part,
        "boxes found; give COCO (annotations.json), YOLO (images/ and labels/) or Pascal VOC (.xml files)",
    )
    if not any(image.boxes for image in found.images):
        why = f"; {found.findings.first()}" if found.findings.found else ""
        raise SelfsightError(f"{path}: none of {len(found.images)} images has a box{why}")
    number = {name: index for index, name in enumerate(found.classes)}
    return BoxSet(
        source=str(path),
        files=found.files,
        names=found.names,
        sizes=found.sizes,
        classes=found.classes,
        split=found.split,
        problems=found.findings.problems,
        boxes=[np.array(image.boxes, np.float32).reshape(-1, 4) for image in found.images],
        labels=[np.array([number[name] for name in image.names], np.int64) for image in found.images],
    )


def write_coco(data: BoxSet, path: Path) -> None:
    """Write all parts of the set as one COCO file, whole or not at all.

    Ids count from 1. Images are named relative to the file's folder if they lie in it, else by their absolute path.
    """
    folder = path.parent.absolute()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row, file in enumerate(map(Path, data.files)):
        name = file.relative_to(folder) if file.is_relative_to(folder) else file
        width, height = data.sizes[row].tolist()
        images.append({"id": row + 1, "file_name": name.as_posix(), "width": width, "height": height})
        for (x0, y0, x1, y1), label in zip(data.boxes[row].tolist(), data.labels[row].tolist(), strict=True):
            bbox = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": row + 1,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(data.classes, 1)]
    with whole_file(path) as output:
        json.dump({"images": images, "annotations": annotations, "categories": categories}, output)
