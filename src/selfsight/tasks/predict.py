"""Use a trained model: predictions as CSV, COCO JSON or PNG masks, and overlays to look at."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selfsight.backbones import Backbone, create, read_safetensors, spec_from_json
from selfsight.data import ImageSet, Skipped, in_order, open_images, write_skipped
from selfsight.data.augment import whole as squares
from selfsight.data.decode import BadImageError, Stretch, not_a_file, read_size, upright
from selfsight.data.folder import printable
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import evaluating
from selfsight.evaluate.finetune import LinearHead
from selfsight.progress import track
from selfsight.run import RunFolder, replace_file, write_table
from selfsight.tasks.augment import whole
from selfsight.tasks.classifier import Classifier, KnnHead
from selfsight.tasks.detection import ONE_PLACE, Boxes, Detector, surest
from selfsight.tasks.model import TaskModel
from selfsight.tasks.overlay import overlay, palette, with_legend
from selfsight.tasks.segmentation import Segmenter

MARK = ".predicted"
"""File in the folders that `predict` fills: what is in them may be replaced."""
LONGEST = 1600
"""Overlays of larger images are shrunk to this many pixels a side: they are for the eye."""


@dataclass(frozen=True)
class PredictConfig:
    """What to write."""

    out: Path = Path("predictions")
    """Folder of the predictions."""
    overlays: bool = True
    """Also draw each image with its class, its boxes or its coloured masks."""
    score: float | None = None
    """Boxes of a lower score are neither written nor drawn, by default 0.3; where images have several classes, so are
    classes of a lower confidence, by default 0.5."""
    overlap: float = ONE_PLACE
    """Of boxes whose intersection over union is more than this the surest is kept, whatever their classes; 1 keeps all
    that the detector found."""
    batch_size: int = 16
    """Images at a time; halved by itself where a GPU has too little memory."""
    cache: bool = True
    """Keep the decoded images, for the next time; --no-cache decodes each twice, once to see whether it can be read."""
    cache_dir: Path | None = None
    """Where the decoded images are kept; by default $SELFSIGHT_CACHE, or ~/.cache/selfsight."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SelfsightError(f"--batch-size {self.batch_size}: must be 1 or more")
        if self.score is not None and not 0 <= self.score <= 1:
            raise SelfsightError(f"--score {self.score}: must be a share in [0, 1]")
        if not 0 < self.overlap <= 1:
            raise SelfsightError(f"--overlap {self.overlap}: must be a share in (0, 1]")


@dataclass(frozen=True)
class Model:
    """A trained model and how to use it."""

    task: str
    model: TaskModel
    classes: list[str]
    image_size: int
    separator: str | None = None
    """Of a classifier: what stands between the classes of an image that may have several."""
    stretch: Stretch | None = None
    """Which values of the training images became 0 and 255, if they had more than 8 bits: so do those of others."""

    def answer(self, images: ImageSet, rows: NDArray[np.int64]) -> list[Any]:
        """Return what is found in each of these images, in pixels of the originals.

        Confidences (K,) of the classes; a dict of boxes, scores and labels; or the classes (H, W) int64 of the pixels.
        """
        spec, device = self.model.backbone.spec, next(self.model.parameters()).device
        if self.task == "classification":
            (batch,) = in_order(images, rows, len(rows), device)
            with evaluating(self.model, self.image_size):
                logits = self.model(squares(batch, self.image_size)).float().cpu()
            return list(logits.softmax(1) if self.separator is None else logits.sigmoid())
        placed = [whole(images.in_shape(int(row)), {}, self.image_size, spec.mean) for row in rows]
        with evaluating(self.model, self.image_size):
            found = self.model(torch.stack([view for view, _, _ in placed]).to(device))
            out: list[Any] = []
            for answer, (_, _, placement), row in zip(found, placed, rows, strict=True):
                width, height = _size(images, int(row))
                back = replace(placement, width=width, height=height)
                if self.task == "detection":
                    boxes = back.boxes_back(answer["boxes"].float().cpu())
                    out.append({"boxes": boxes, "scores": answer["scores"].cpu(), "labels": answer["labels"].cpu()})
                else:
                    out.append(back.classes_back(answer).cpu())
        return out


def load_model(path: str | Path) -> Model:
    """Load what `selfsight train` wrote.

    Raises SelfsightError where there is none, or where it has not finished.
    """
    folder = RunFolder(Path(path))
    config = folder.config()
    task = config.get("task")
    if task not in ("classification", "detection", "segmentation"):
        raise SelfsightError(f"{path}: holds no model for a task; make one with `selfsight train`")
    if not folder.method_file.exists():
        raise SelfsightError(f"{path}: not finished; run the same `selfsight train` again, it goes on")
    backbone = create(spec_from_json(config["backbone"]))
    classes, size, chosen = config["classes"], config["image_size"], config["model"]
    model: TaskModel
    if task == "classification":
        model = classifier(backbone, len(classes), chosen, folder.method_file)
    elif task == "detection":
        settings = {name: chosen[name] for name in ("kind", "width", "finest", "most") if name in chosen}
        model = Detector(backbone, len(classes), size, **settings)
    else:
        model = Segmenter(backbone, len(classes), chosen["decoder"], width=chosen["width"])
    folder.load_method(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low, high = config.get("stretch") or ((), ())
    stretch = (tuple(low), tuple(high)) if low else None
    return Model(task, model.to(device).eval(), classes, size, chosen.get("separator"), stretch)


def classifier(backbone: Backbone, classes: int, chosen: dict[str, Any], weights: Path) -> Classifier:
    """Return a classifier of the settings `chosen` for the weights in this file, which are not loaded yet."""
    if chosen["head"] != "knn":
        return Classifier(backbone, LinearHead(backbone.dim, classes))
    kept = read_safetensors(weights, str(weights))
    return Classifier(backbone, KnnHead(kept["head.bank"], kept["head.targets"], chosen["separator"] is not None))


def predict(path: str | Path, data: str, config: PredictConfig | None = None) -> dict[str, Any]:
    """Predict for a folder, a file, or, with data '-', for the paths on standard input; return what was written where.

    `path` is the folder of a training on labels. Raises SelfsightError where there is no image that can be read.
    """
    model, config = load_model(path), config or PredictConfig()
    channels = model.model.backbone.spec.channels
    paths, missing = _paths(data)
    alike: dict[str, Any] = {"image_size": model.image_size, "channels": channels, "stretch": model.stretch}
    images = open_images(paths, cache=config.cache, cache_dir=config.cache_dir, verify=True, **alike)
    if isinstance(paths, list) and images.files is not None:
        images = _as_given(images, images.files, paths)
    if missing:
        images = replace(images, skipped=[*images.skipped, *missing])
    if images.files is None and model.task != "classification":
        raise SelfsightError(f"{data}: a {model.task} is predicted of image files, in whose pixels it is written")
    config.out.mkdir(parents=True, exist_ok=True)
    for name, filled in (("masks", model.task == "segmentation"), ("overlays", config.overlays)):
        if filled:
            _claim(config.out / name)
    writer: Writer = WRITERS[model.task](model, config)
    answers = _answers(model, images, config.batch_size)
    write_skipped(config.out / "skipped.csv", images.skipped)
    written = {"images": len(images), "skipped": len(images.skipped), "out": str(config.out)}
    found = 0
    try:
        for row, answer in track(answers, "predict", "images", len(images)):
            size = (0, 0) if model.task == "classification" else _size(images, row)
            kept = writer.add(images.names[row], answer, size)
            if config.overlays:
                picture = writer.overlay(_shown(images, row), kept, size)
                _save(picture, config.out / "overlays" / _png(images.names[row]))
            found += 1
    finally:
        if found:  # also what was found before Ctrl-C, or before a file went away
            written |= writer.finish()
    return written


def _claim(folder: Path) -> None:
    """Raise SelfsightError where a folder that is about to be filled holds files that were not predicted."""
    if not (folder / MARK).exists() and folder.is_dir() and any(folder.iterdir()):
        raise SelfsightError(f"{folder}: holds files that `predict` did not write; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


class Writer(Protocol):
    """Takes what was found, image by image, and writes it."""

    def add(self, name: str, answer: Any, size: tuple[int, int]) -> Any:
        """Take the answer for an image of `size` (width, height); return what is kept of it."""

    def overlay(self, image: Tensor, kept: Any, size: tuple[int, int]) -> Image.Image:
        """Return the image (3, H, W) uint8 with what was kept drawn on it."""

    def finish(self) -> dict[str, Any]:
        """Write what remains; return what there is."""


class ClassWriter:
    """predictions.csv: path, class, its confidence, and the confidence of every class."""

    def __init__(self, model: Model, config: PredictConfig) -> None:
        self.model, self.out = model, config.out
        self.score = 0.5 if config.score is None else config.score
        self.lines: list[list[str]] = []

    def add(self, name: str, answer: Tensor, size: tuple[int, int]) -> list[tuple[str, float]]:
        """Take the confidences (K,) of an image; return the classes that it has, the surest first."""
        order = answer.argsort(descending=True).tolist()
        several = self.model.separator is not None
        chosen = [k for k in order if answer[k] >= self.score] if several else order[:1]
        classes = (self.model.separator or "").join(self.model.classes[k] for k in chosen)
        best = f"{float(answer[order[0]]):.4f}"
        self.lines.append([name, classes, best, *(f"{value:.4f}" for value in answer.tolist())])
        return [(self.model.classes[k], float(answer[k])) for k in chosen]

    def overlay(self, image: Tensor, kept: list[tuple[str, float]], size: tuple[int, int]) -> Image.Image:
        """Return the image (3, H, W) uint8 with its classes and their confidences under it."""
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        least = 160  # pixels: the words of a smaller picture could not be read
        if picture.width < least:
            picture = picture.resize((least, round(picture.height * least / picture.width)), Image.Resampling.NEAREST)
        return with_legend(picture, [(f"{name} {share:.0%}", (31, 95, 191)) for name, share in kept])

    def finish(self) -> dict[str, Any]:
        """Write the file; return what it is."""
        target = self.out / "predictions.csv"
        write_table(target, ["path", "class", "confidence", *self.model.classes], self.lines)
        return {"predictions": str(target)}


class BoxWriter:
    """predictions.json, in COCO's format, with scores."""

    def __init__(self, model: Model, config: PredictConfig) -> None:
        self.classes, self.out, self.overlap = model.classes, config.out, config.overlap
        self.score = 0.3 if config.score is None else config.score
        self.colours = palette(len(model.classes), first_is_background=False)
        self.coco: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(model.classes, 1)],
        }

    def add(self, name: str, answer: Boxes, size: tuple[int, int]) -> Boxes:
        """Take the boxes of an image; return those that are sure enough, the surest of each place."""
        number = len(self.coco["images"]) + 1
        self.coco["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        kept = surest(answer, self.score, self.overlap)
        _add(self.coco, kept, number)
        return kept

    def overlay(self, image: Tensor, kept: Boxes, size: tuple[int, int]) -> Image.Image:
        """Return the image (3, H, W) uint8 with its boxes."""
        return overlay(image, kept, size, self.classes, self.colours)

    def finish(self) -> dict[str, Any]:
        """Write the file; return what it is."""
        target = self.out / "predictions.json"
        replace_file(target, lambda p: p.write_text(json.dumps(self.coco)))
        return {"predictions": str(target), "boxes": len(self.coco["annotations"])}


class MaskWriter:
    """masks/, PNGs of class numbers, in colour for who opens them."""

    def __init__(self, model: Model, config: PredictConfig) -> None:
        self.classes, self.out = model.classes, config.out
        self.colours = palette(len(model.classes), first_is_background=True)
        self.written: dict[Path, str] = {}

    def add(self, name: str, answer: Tensor, size: tuple[int, int]) -> Tensor:
        """Write the classes (H, W) of an image's pixels; return them."""
        mask = Image.fromarray(answer.numpy().astype(np.uint8))
        mask.putpalette([value for colour in self.colours for value in colour])
        place = _below(name).with_suffix(".png")
        if self.written.setdefault(place, name) != name:  # beside a.jpg there is an a.webp
            place = _png(name)
        _save(mask, self.out / "masks" / place)
        return answer

    def overlay(self, image: Tensor, kept: Tensor, size: tuple[int, int]) -> Image.Image:
        """Return the image (3, H, W) uint8 with its classes in colour, and a legend."""
        return overlay(image, kept, size, self.classes, self.colours)

    def finish(self) -> dict[str, Any]:
        """Return where the masks are."""
        return {"masks": str(self.out / "masks")}


WRITERS: dict[str, Callable[[Model, PredictConfig], Writer]] = {
    "classification": ClassWriter,
    "detection": BoxWriter,
    "segmentation": MaskWriter,
}


def _answers(model: Model, images: ImageSet, batch_size: int) -> Iterator[tuple[int, Any]]:
    """Yield (row, answer) of each image; batches are halved where the GPU's memory is too small."""
    pending: list[NDArray[np.int64]] = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
    while pending:
        part = pending.pop(0)
        try:
            answers = model.answer(images, part)
        except torch.cuda.OutOfMemoryError:
            if len(part) == 1:
                raise
            torch.cuda.empty_cache()
            pending[:0] = np.array_split(part, 2)
            continue
        yield from zip(part.tolist(), answers, strict=True)


def _size(images: ImageSet, row: int) -> tuple[int, int]:
    assert images.files is not None
    try:
        return read_size(images.files[row])
    except BadImageError as error:
        raise SelfsightError(f"{images.files[row]}: {error}") from error


def _shown(images: ImageSet, row: int) -> Tensor:
    """Return the image as it is drawn on, (3, H, W) uint8: at most 1,600 pixels a side."""
    try:
        if images.files is None:
            raise FileNotFoundError
        with Image.open(images.files[row]) as image:
            if image.mode == "RGB":  # Pillow can't shrink all of the others, which are drawn as they were decoded
                image.thumbnail((LONGEST, LONGEST))
            turned = upright(image)
            if turned.mode == "RGB" and abs(turned.width / turned.height / float(images.aspect[row]) - 1) < 0.02:
                return torch.from_numpy(np.array(turned)).permute(2, 0, 1).contiguous()
    except OSError:
        pass  # what the library reads and Pillow alone does not: the decoded pixels will do
    pixels = images.in_shape(row)
    return pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)


def _add(coco: dict[str, Any], found: Boxes, image: int) -> None:
    for box, score, label in zip(*(found[k].tolist() for k in ("boxes", "scores", "labels")), strict=True):
        x0, y0, x1, y1 = (round(value, 2) for value in box)
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "score": round(score, 4),
                "iscrowd": 0,
            }
        )


def _paths(data: str) -> tuple[str | list[str], list[Skipped]]:
    """Return what `open_images` takes, of standard input a list, and what of that is no file.

    SelfsightError if there is nothing else.
    """
    if data != "-":
        return data, []
    content = sys.stdin.buffer.read()  # names need not be UTF-8; between those of `find -print0` are zeros
    lines = content.split(b"\0") if b"\0" in content else [line.strip() for line in content.splitlines()]
    named = dict.fromkeys(os.fsdecode(line) for line in lines if line)
    reasons = {path: not_a_file(str(Path(path).expanduser())) for path in named}
    missing = [Skipped(printable(path), reason) for path, reason in reasons.items() if reason]
    found = [path for path, reason in reasons.items() if not reason]
    if not found:
        example = f"; for example {missing[0].name}: {missing[0].reason}" if missing else ", it is empty"
        raise SelfsightError(f"standard input names no image{example}")
    return found, missing


def _as_given(images: ImageSet, files: Sequence[str], paths: list[str]) -> ImageSet:
    """Return the images, and those that were skipped, by the names that were given: by these they are known."""
    given = {str(Path(path).expanduser().absolute()): printable(path) for path in paths}
    folder = Path(os.path.commonpath([Path(file).parent for file in given]))
    skipped = [replace(skip, name=given.get(str(folder / skip.name), skip.name)) for skip in images.skipped]
    return replace(images, names=[given[file] for file in files], skipped=skipped)


def _png(name: str) -> Path:
    path = _below(name)
    return path.with_name(f"{path.name}.png")


def _below(name: str) -> Path:
    """Return an image's name as a path below a folder: tables name images by absolute paths too, or by ../."""
    return Path(*("up" if part == ".." else part for part in Path(name).parts if part != Path(name).anchor))


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda p: picture.save(p, format="PNG"))
