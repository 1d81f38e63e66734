"""Use a trained detector or segmenter: predictions as COCO JSON or PNG masks, and overlays to look at."""

import colorsys
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from selfsight.backbones import create, spec_from_json
from selfsight.data import ImageSet, open_images
from selfsight.data.decode import BadImageError, read_size
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import evaluating
from selfsight.progress import track
from selfsight.run import RunFolder, replace_file
from selfsight.tasks.augment import whole
from selfsight.tasks.dense import DenseModel
from selfsight.tasks.detection import Boxes, Detector
from selfsight.tasks.segmentation import Segmenter

LONGEST = 1600
"""Overlays of larger images are shrunk to this many pixels a side: they are for the eye."""


@dataclass(frozen=True)
class PredictConfig:
    """What to write."""

    out: Path = Path("predictions")
    """Folder of the predictions."""
    overlays: bool = True
    """Also draw each image with its boxes or coloured masks."""
    score: float = 0.3
    """Boxes of a lower score are neither written nor drawn, 0 to 1."""
    batch_size: int = 16
    """Images at a time; halved by itself where a GPU has too little memory."""


@dataclass(frozen=True)
class Model:
    """A trained detector or segmenter and how to use it."""

    task: str
    model: DenseModel
    classes: list[str]
    image_size: int

    def answer(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Any]:
        """Return what is found in images (C, H, W) uint8, in pixels of originals of these sizes (width, height).

        A dict of boxes, scores and labels each, or the classes (H, W) int64.
        """
        spec, device = self.model.backbone.spec, next(self.model.parameters()).device
        placed = [whole(image, {}, self.image_size, spec.mean) for image in images]
        with evaluating(self.model):
            answers = self.model(torch.stack([view for view, _, _ in placed]).to(device))
            out: list[Any] = []
            for answer, (_, _, placement), (width, height) in zip(answers, placed, sizes, strict=True):
                back = replace(placement, width=width, height=height)
                if self.task == "detection":
                    boxes = back.boxes_back(answer["boxes"].float().cpu())
                    out.append({"boxes": boxes, "scores": answer["scores"].cpu(), "labels": answer["labels"].cpu()})
                else:
                    out.append(back.maps_back(answer.float()).argmax(0).cpu())
        return out


def load_model(path: str | Path) -> Model:
    """Load what `selfsight train detection` or `segmentation` wrote.

    Raises SelfsightError where there is none, or where it has not finished.
    """
    folder = RunFolder(Path(path))
    config = folder.config()
    if config.get("task") not in ("detection", "segmentation"):
        raise SelfsightError(f"{path}: holds no detector or segmenter; make one with `selfsight train`")
    if not folder.method_file.exists():
        raise SelfsightError(f"{path}: not finished; run the same `selfsight train` again, it goes on")
    backbone = create(spec_from_json(config["backbone"]))
    classes, size, chosen = config["classes"], config["image_size"], config["model"]
    width = chosen["width"]
    model: DenseModel
    if config["task"] == "detection":
        model = Detector(backbone, len(classes), size, chosen["kind"], width=width, finest=chosen["finest"])
    else:
        model = Segmenter(backbone, len(classes), chosen["decoder"], width=width)
    folder.load_method(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Model(config["task"], model.to(device).eval(), classes, size)


def predict(path: str | Path, data: str, config: PredictConfig) -> dict[str, Any]:
    """Predict for a folder, a file, or, with data '-', for the paths on standard input; return what was written where.

    Raises SelfsightError where there is no image that can be read.
    """
    model = load_model(path)
    images = open_images(_paths(data), image_size=model.image_size, channels=model.model.backbone.spec.channels)
    config.out.mkdir(parents=True, exist_ok=True)
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(model.classes, 1)],
    }
    colours = palette(len(model.classes), first_is_background=model.task == "segmentation")
    answers = _answers(model, images, config.batch_size)
    for row, answer, size, pixels in track(answers, "predict", "images", len(images)):
        name = images.names[row]
        coco["images"].append({"id": row + 1, "file_name": name, "width": size[0], "height": size[1]})
        if model.task == "detection":
            answer = {k: v[answer["scores"] >= config.score] for k, v in answer.items()}
            _add(coco, answer, row + 1)
        else:
            mask = Image.fromarray(answer.numpy().astype(np.uint8))
            mask.putpalette([value for colour in colours for value in colour])
            _save(mask, config.out / "masks" / Path(name).with_suffix(".png"))
        if config.overlays:
            shown = _shown(images, row, pixels)
            _save(overlay(shown, answer, size, model.classes, colours), config.out / "overlays" / _png(name))
    written: dict[str, Any] = {"images": len(images), "skipped": len(images.skipped), "out": str(config.out)}
    if model.task == "detection":
        target = config.out / "predictions.json"
        replace_file(target, lambda p: p.write_text(json.dumps(coco)))
        written |= {"predictions": str(target), "boxes": len(coco["annotations"])}
    return written


def overlay(
    image: Tensor, answer: Any, size: tuple[int, int], classes: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """Return an image (3, H, W) uint8 with boxes, classes and scores on it, or with its classes coloured and a legend.

    `answer` is in pixels of the original of `size` (width, height).
    """
    height, width = image.shape[1:]
    if isinstance(answer, dict):
        boxes = answer["boxes"] * torch.tensor([width / size[0], height / size[1]] * 2)
        labels = [
            f"{classes[k]} {score:.0%}" for k, score in zip(answer["labels"], answer["scores"].tolist(), strict=True)
        ]
        chosen = [colours[k] for k in answer["labels"]]
        if len(boxes):
            image = draw_bounding_boxes(image, boxes, labels, chosen, width=max(1, min(height, width) // 150))
        return Image.fromarray(image.permute(1, 2, 0).numpy())
    shown = torch.nn.functional.interpolate(answer[None, None].float(), (height, width), mode="nearest-exact")[0, 0]
    present = [k for k in range(1, len(classes)) if bool((shown == k).any())]
    if present:
        masks = torch.stack([shown == k for k in present])
        image = draw_segmentation_masks(image, masks, 0.5, [colours[k] for k in present])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return _with_legend(picture, [(classes[k], colours[k]) for k in present])


def palette(count: int, first_is_background: bool) -> list[tuple[int, int, int]]:
    """Return so many colours (red, green, blue) that can be told apart; the background is black."""
    golden = 0.618034  # turns of the hue: neighbours in number are far apart in colour
    colours = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k * golden % 1, 0.75, 0.95)) for k in range(count)]
    return [(0, 0, 0), *colours[: count - 1]] if first_is_background else colours  # type: ignore[return-value,list-item]


def _answers(model: Model, images: ImageSet, batch_size: int) -> Iterator[tuple[int, Any, tuple[int, int], Tensor]]:
    """Yield (row, answer, size, pixels) of each image; batches are halved where the GPU's memory is too small."""
    pending: list[NDArray[np.int64]] = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
    while pending:
        part = pending.pop(0)
        pixels = [images.in_shape(int(row)) for row in part]
        sizes = [_size(images, int(row)) for row in part]
        try:
            answers = model.answer(pixels, sizes)
        except torch.cuda.OutOfMemoryError:
            if len(part) == 1:
                raise
            torch.cuda.empty_cache()
            pending[:0] = np.array_split(part, 2)
            continue
        yield from zip(part.tolist(), answers, sizes, pixels, strict=True)


def _size(images: ImageSet, row: int) -> tuple[int, int]:
    assert images.files is not None
    try:
        return read_size(images.files[row])
    except BadImageError as error:
        raise SelfsightError(f"{images.files[row]}: {error}") from error


def _shown(images: ImageSet, row: int, pixels: Tensor) -> Tensor:
    """Return the image as it is drawn on, (3, H, W) uint8: at most 1,600 pixels a side."""
    assert images.files is not None
    try:
        with Image.open(images.files[row]) as image:
            image.thumbnail((LONGEST, LONGEST))
            if image.mode == "RGB" and abs(image.width / image.height / float(images.aspect[row]) - 1) < 0.02:
                return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    except OSError:
        pass  # what the library reads and Pillow alone does not: the decoded pixels will do
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


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Return the picture with a strip under it that names the colours."""
    if not entries:
        return picture
    size = max(11, picture.height // 25)
    font = ImageFont.load_default(size)
    strip = Image.new("RGB", (picture.width, picture.height + 2 * size), "white")
    strip.paste(picture, (0, 0))
    draw, x = ImageDraw.Draw(strip), size // 2
    for name, colour in entries:
        top = picture.height + size // 2
        draw.rectangle((x, top, x + size, top + size), fill=colour)
        draw.text((x + size * 1.3, top - size * 0.1), name, fill="black", font=font)
        x += round(size * 2.2 + draw.textlength(name, font=font))
    return strip


def _paths(data: str) -> Any:
    """Return what `open_images` takes: a folder or a table as it is; of a file, or of standard input, a list."""
    if data == "-":
        return [line.strip() for line in sys.stdin if line.strip()]
    return data


def _png(name: str) -> Path:
    path = Path(name)
    return path.with_name(f"{path.name}.png")


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda p: picture.save(p, format="PNG"))
