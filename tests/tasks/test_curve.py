"""From labelled folders to a detector and a segmenter: curves, resumed trainings, predictions in original pixels."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.data import BoxSet, open_boxes, write_coco
from selfsight.errors import SelfsightError, StoppedError
from selfsight.run import RunFolder
from selfsight.tasks import curve
from selfsight.tasks import predict as predicting
from selfsight.tasks.augment import whole
from selfsight.tasks.curve import TrainConfig, open_job, train
from selfsight.tasks.jobs import Detection, DetectionConfig, Segmentation, SegmentationConfig
from selfsight.tasks.learning import Batches, Examples, LearnConfig, Learner, learn
from selfsight.tasks.predict import PredictConfig, load_model, predict
from tests.gallery.galleries import make_run
from tests.tasks.scenes import SIDE, backbone, rectangles

CPU = torch.device("cpu")
WIDE = 2 * SIDE  # the files are twice as large as what the network sees, and as wide again
SHORT = LearnConfig(min_steps=4, epochs=0.1, batch_size=4, checks=2)
NONE = np.zeros(0, np.int64)


def scenes(folder: Path, n: int = 8) -> Path:
    """Two rectangles an image, four times the pixels of `rectangles`, as COCO boxes and as index masks."""
    images, boxes, masks = rectangles(n)
    for part, rows in (("train", range(n - 2)), ("test", range(n - 2, n))):
        for sub in ("images", "masks"):
            (folder / part / sub).mkdir(parents=True)
        for i in rows:
            pixels = (images[i].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            Image.fromarray(pixels).resize((WIDE, WIDE), 0).save(folder / part / "images" / f"{i}.png")
            mask = Image.fromarray(masks[i].numpy().astype(np.uint8)).resize((WIDE, WIDE), 0)
            mask.save(folder / part / "masks" / f"{i}.png")
        kept = list(rows)
        found = BoxSet(
            source="",
            files=[str(folder / part / "images" / f"{i}.png") for i in kept],
            names=[f"{i}.png" for i in kept],
            sizes=np.full((len(kept), 2), WIDE),
            classes=["left", "right"],
            boxes=[2 * boxes[i].numpy() for i in kept],
            labels=[np.array([0, 1]) for _ in kept],
        )
        write_coco(found, folder / part / "annotations.json")
    return folder


def trained(folder: Path, out: Path, settings: Any, learning: LearnConfig = SHORT, **options: Any) -> curve.Trained:
    config, net = TrainConfig(image_size=SIDE, **options), backbone("test_resnet")
    result = train(net, folder, config, settings, learning, method="simclr", run="run", out=out)
    assert result is not None
    return result


def test_a_curve_has_each_amount_seed_and_start_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = scenes(tmp_path / "scenes"), tmp_path / "out"
    options: dict[str, Any] = {"labels": (0.5, 1.0), "seeds": 2}
    result = trained(folder, out, DetectionConfig(width=32), **options)
    main = [row for row in result.rows if row.metric == "map_50"]
    wanted = {(m, a, s) for m in ("simclr", "scratch") for a in (0.5, 1.0) for s in (0, 1)}
    assert {(row.method, row.labels, row.seed) for row in main} == wanted
    assert len(main) == len(wanted)
    assert all(0 <= row.value <= 1 for row in main)
    assert (out / "curve.png").exists()
    with Image.open(out / "pictures" / "01.png") as picture:
        assert picture.width == pytest.approx(picture.height, rel=0.1), "two test images: their labels, what was found"
    assert not list(out.rglob("*.ckpt"))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(curve, "learn", never)
    again = trained(folder, out, DetectionConfig(width=32), **options)
    assert again.rows == result.rows
    elsewhere = replace(SHORT, workers=0, checkpoint_minutes=9.0)
    assert trained(folder, out, DetectionConfig(width=32), elsewhere, **options).rows == result.rows
    with pytest.raises(SelfsightError, match="other training"):
        trained(folder, out, DetectionConfig(width=32), labels=(0.5, 1.0), seeds=3)


def test_a_detector_is_saved_and_predicts_boxes_in_the_originals_pixels(tmp_path: Path) -> None:
    folder, out = scenes(tmp_path / "scenes"), tmp_path / "out"
    learning = LearnConfig(min_steps=50, epochs=0.1, batch_size=4, lr=3e-3, hflip=False)
    settings = DetectionConfig(width=32, scale=(1.0, 1.0))
    result = trained(folder, out, settings, test=str(folder / "train"), learning=learning)
    (value,) = [row.value for row in result.rows if row.metric == "map_50"]
    assert value > 0.5, "it was tested on what it was trained on"
    each = [row.value for row in result.rows if row.metric.startswith("ap:")]
    (mean,) = [row.value for row in result.rows if row.metric == "map"]
    assert mean == pytest.approx(sum(each) / len(each))
    assert {row.method for row in result.rows} == {"simclr"}, "without --labels there is no training from scratch"
    config = PredictConfig(out=tmp_path / "predicted", score=0.3)
    written = predict(out, str(folder / "train" / "images"), config)
    assert written["images"] == 6
    found = json.loads((tmp_path / "predicted" / "predictions.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["left", "right"]
    assert {(i["width"], i["height"]) for i in found["images"]} == {(WIDE, WIDE)}
    truth = open_boxes(folder / "train")
    best = max(found["annotations"], key=lambda a: a["score"])
    name = next(i["file_name"] for i in found["images"] if i["id"] == best["image_id"])
    row = [Path(n).name for n in truth.names].index(name)
    x, y, w, h = best["bbox"]
    x0, y0, x1, y1 = truth.boxes[row][best["category_id"] - 1].tolist()
    inside = max(0, min(x + w, x1) - max(x, x0)) * max(0, min(y + h, y1) - max(y, y0))
    assert inside / (w * h + (x1 - x0) * (y1 - y0) - inside) > 0.5
    with Image.open(tmp_path / "predicted" / "overlays" / f"{name}.png") as overlay:
        assert overlay.size == (WIDE, WIDE)
    counts = []
    for overlap in (0.01, 1.0):
        some = PredictConfig(out=tmp_path / f"overlap-{overlap}", score=0.05, overlap=overlap, overlays=False)
        counts.append(predict(out, str(folder / "train" / "images"), some)["boxes"])
    assert counts[0] < counts[1], "boxes that overlap are one place, or all kept"


def test_a_segmenter_is_saved_and_predicts_masks_of_the_originals_size(tmp_path: Path) -> None:
    folder, out = scenes(tmp_path / "scenes"), tmp_path / "out"
    learning = LearnConfig(min_steps=40, epochs=0.1, batch_size=4, lr=3e-3, hflip=False)
    result = trained(folder, out, SegmentationConfig(scale=(1.0, 1.0)), test=str(folder / "train"), learning=learning)
    (value,) = [row.value for row in result.rows if row.metric == "miou"]
    assert value > 0.6
    one = next((folder / "train" / "images").glob("*.png"))
    written = predict(out, str(one), PredictConfig(out=tmp_path / "predicted"))
    assert written["images"] == 1
    with (
        Image.open(tmp_path / "predicted" / "masks" / one.name) as mask,
        Image.open(folder / "train/masks" / one.name) as t,
    ):
        assert mask.mode == "P"
        assert mask.size == (WIDE, WIDE)
        assert float((np.asarray(mask) == np.asarray(t)).mean()) > 0.8
    assert (tmp_path / "predicted" / "overlays" / f"{one.name}.png").exists()
    before, table = one.read_bytes(), tmp_path / "next.csv"
    Image.open(one).save(one.with_suffix(".webp"), lossless=True)
    table.write_text(f"path\n{one}\n{one.with_suffix('.webp')}\n")  # absolute, as `select --out` writes it
    predict(out, str(table), PredictConfig(out=tmp_path / "named"))
    assert one.read_bytes() == before, "a mask is never written beside the images"
    place = (tmp_path / "named" / "masks").joinpath(*one.parts[1:])
    assert place.exists()
    assert place.with_name(f"{one.stem}.webp.png").exists()


def test_a_frozen_backbone_without_pretraining_is_called_random(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    frozen = replace(SHORT, frozen=True)
    for name, settings, learning in (
        ("boxes", DetectionConfig(width=32), frozen),
        ("masks", SegmentationConfig(decoder="linear"), SHORT),
    ):
        rows = trained(folder, tmp_path / name, settings, learning, labels=(1.0,), seeds=1).rows
        assert {(row.method, row.protocol) for row in rows} == {("simclr", "frozen"), ("random", "frozen")}


def test_images_that_came_later_are_not_answered_from_before(tmp_path: Path) -> None:
    folder, out = scenes(tmp_path / "scenes"), tmp_path / "out"
    settings = SegmentationConfig(decoder="linear")
    trained(folder, out, settings)
    for sub in ("images", "masks"):
        copy(folder / "train" / sub / "0.png", folder / "train" / sub / "later.png")
    with pytest.raises(SelfsightError, match="other images"):
        trained(folder, out, settings)


def test_pixels_that_changed_are_not_answered_from_before(tmp_path: Path) -> None:
    folder, out = scenes(tmp_path / "scenes"), tmp_path / "out"
    settings = SegmentationConfig(decoder="linear")
    trained(folder, out, settings)
    assert trained(folder, out, settings)
    Image.new("RGB", (WIDE, WIDE), "red").save(folder / "train" / "images" / "0.png")
    with pytest.raises(SelfsightError, match="other pixels"):
        trained(folder, out, settings)


def test_labels_that_were_corrected_are_not_answered_from_before(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    boxes, masks = tmp_path / "boxes", tmp_path / "masks"
    trained(folder, boxes, DetectionConfig(width=32))
    trained(folder, masks, SegmentationConfig(decoder="linear"))
    annotations = folder / "train" / "annotations.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    annotations.write_text(json.dumps(content))
    with pytest.raises(SelfsightError, match="other labels"):
        trained(folder, boxes, DetectionConfig(width=32))
    Image.new("L", (WIDE, WIDE)).save(folder / "train" / "masks" / "0.png")
    with pytest.raises(SelfsightError, match="other labels"):
        trained(folder, masks, SegmentationConfig(decoder="linear"))


def test_a_damaged_image_is_listed_and_fatal_if_strict(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    damaged = folder / "train" / "images" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])  # its header is sound
    trained(folder, tmp_path / "out", SegmentationConfig(decoder="linear"))
    assert "0.png" in (tmp_path / "out" / "problems.csv").read_text()
    with pytest.raises(SelfsightError, match=r"0\.png"):
        trained(folder, tmp_path / "strict", SegmentationConfig(decoder="linear"), strict=True)
    config = TrainConfig(image_size=SIDE)
    job = open_job(backbone("test_resnet"), folder, config, DetectionConfig(), SHORT)
    assert all(len(job.few(0.2, seed)) == 1 for seed in range(10)), "no amount is spent on what can't be read"
    (folder / "test" / "images" / "6.png").write_bytes(damaged.read_bytes())
    found = predict(tmp_path / "out", str(folder / "test" / "images"), PredictConfig(out=tmp_path / "found"))
    assert found["skipped"] == 1
    assert "6.png" in (tmp_path / "found" / "skipped.csv").read_text()


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    config = TrainConfig(image_size=SIDE)
    job = open_job(backbone("test_resnet"), folder, config, SegmentationConfig(), SHORT)
    rows = job.rows("train")

    def run(name: str) -> tuple[Any, RunFolder]:
        path = RunFolder(tmp_path / name)
        path.path.mkdir()
        torch.manual_seed(0)
        return job.model(backbone("test_resnet")), path

    whole, out = run("whole")
    learn(Learner(job, whole, rows, NONE, SHORT, out, True, 3), CPU)
    parts, out = run("parts")
    seen = 0
    loss = job.loss

    class Interrupted:
        """The job, which asks to stop in its second step."""

        def __getattr__(self, name: str) -> Any:
            return getattr(job, name)

        def loss(self, *arguments: Any) -> torch.Tensor:
            nonlocal seen
            seen += 1
            if seen == 2:
                signal.raise_signal(signal.SIGINT)
            return loss(*arguments)

    with pytest.raises(StoppedError):
        learn(Learner(Interrupted(), parts, rows, NONE, SHORT, out, True, 3), CPU)  # type: ignore[arg-type]
    assert out.checkpoint_file.exists()
    resumed = job.model(backbone("test_resnet"))
    learn(Learner(job, resumed, rows, NONE, SHORT, out, True, 3), CPU)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_of_equally_good_weights_the_last_are_kept(tmp_path: Path) -> None:
    """The first are of a time when the rate was near its peak."""
    job = open_job(backbone("test_resnet"), scenes(tmp_path / "scenes"), TrainConfig(), SegmentationConfig(), SHORT)
    seen: list[torch.Tensor] = []

    class Alike:
        """The job, by which all weights are as good."""

        def __getattr__(self, name: str) -> Any:
            return getattr(job, name)

        def scores(self, model: Any, part: str, rows: Any) -> dict[str, float]:
            seen.append(next(model.head.parameters()).detach().clone())
            return {"miou": 0.5}

    model, rows, out = job.model(backbone("test_resnet")), job.rows("train"), RunFolder(tmp_path / "run")
    out.path.mkdir()
    learn(Learner(Alike(), model, rows[1:], rows[:1], SHORT, out, True, 3), CPU)  # type: ignore[arg-type]
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(next(model.head.parameters()), seen[1])


def test_ctrl_c_in_the_last_step_stops_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, steps, loss = scenes(tmp_path / "scenes"), 0, Segmentation.loss

    def interrupted(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(Segmentation, "loss", interrupted)
    options: dict[str, Any] = {"labels": (1.0,), "seeds": 1}
    with pytest.raises(StoppedError, match="stopped at 100%"):
        trained(folder, tmp_path / "out", SegmentationConfig(), **options)
    result = trained(folder, tmp_path / "out", SegmentationConfig(), **options)
    assert {row.method for row in result.rows} == {"simclr", "scratch"}
    assert steps == 8, "what was finished is not trained again"


def test_a_picture_that_cannot_be_drawn_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("of no size")

    monkeypatch.setattr(Segmentation, "illustrate", fail)
    trained(scenes(tmp_path / "scenes"), tmp_path / "out", SegmentationConfig())
    assert "of no size" in capsys.readouterr().err
    assert load_model(tmp_path / "out").task == "segmentation"


def test_other_weights_are_tested_with_the_padding_that_they_were_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_job(backbone("test_resnet"), scenes(tmp_path / "scenes"), TrainConfig(), SegmentationConfig(), SHORT)
    assert isinstance(job, Segmentation)
    job = replace(job, view=replace(job.view, mean=(1.0, 0.0, 1.0)))
    seen = []

    def noted(*arguments: Any) -> Any:
        seen.append(arguments[3])
        return whole(*arguments)

    monkeypatch.setattr("selfsight.tasks.jobs.whole", noted)
    job.scores(job.model(backbone("test_resnet")), "test", job.rows("test"))
    assert seen == [(1.0, 0.0, 1.0)] * len(job.rows("test"))


def test_what_was_predicted_before_a_file_went_away_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scenes(tmp_path / "scenes")
    trained(folder, tmp_path / "out", DetectionConfig(width=32))
    size, gone = predicting._size, {2}

    def size_of(images: Any, row: int) -> tuple[int, int]:
        if row in gone:
            raise SelfsightError(f"{row}.png: gone")
        return size(images, row)

    monkeypatch.setattr("selfsight.tasks.predict._size", size_of)
    config = PredictConfig(out=tmp_path / "found", batch_size=2)
    for _ in range(2):
        with pytest.raises(SelfsightError, match="gone"):
            predict(tmp_path / "out", str(folder / "train" / "images"), config)
        assert len(json.loads((tmp_path / "found" / "predictions.json").read_text())["images"]) == 2
        gone.add(0)  # nothing found is no reason to forget what was


def test_examples_are_a_function_of_seed_and_number_and_show_all_images_equally(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    config = TrainConfig(image_size=SIDE)
    job = open_job(backbone("test_resnet"), folder, config, DetectionConfig(), SHORT)
    rows = job.rows("train")
    examples = Examples(job, rows, seed=5)
    assert sorted(examples.row(i) for i in range(2 * len(rows))) == sorted([*rows, *rows])
    torch.manual_seed(1)
    first = examples[7]
    torch.rand(3)
    assert torch.equal(first[0], Examples(job, rows, seed=5)[7][0])
    assert not torch.equal(first[0], Examples(job, rows, seed=6)[7][0])
    stream = iter(Batches(4, start=3))
    assert [next(stream), next(stream)] == [[12, 13, 14, 15], [16, 17, 18, 19]]
    halves = [iter(Batches(4, 3, rank, 2)) for rank in (0, 1)]
    assert [next(halves[0]), next(halves[1]), next(halves[0])] == [[12, 13], [14, 15], [16, 17]]


def test_a_class_of_the_test_that_training_has_not_is_named(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    path = folder / "test" / "annotations.json"
    path.write_text(path.read_text().replace('"right"', '"lorry"'))
    config = TrainConfig(image_size=SIDE, test=str(folder / "test"))
    with pytest.raises(SelfsightError, match="'lorry'"):
        open_job(backbone("test_resnet"), folder / "train", config, DetectionConfig(), SHORT)


def test_an_unfinished_or_foreign_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match="not a run"):
        load_model(tmp_path)
    RunFolder(tmp_path).write_config({"method": "simclr"})
    with pytest.raises(SelfsightError, match="no model for a task"):
        load_model(tmp_path)


def test_a_part_without_a_box_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    path = folder / "test" / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    with pytest.raises(SelfsightError, match="no labelled image in the test part"):
        open_job(backbone("test_resnet"), folder, TrainConfig(image_size=SIDE), DetectionConfig(), SHORT)


def test_images_that_are_learned_from_and_tested_on_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scenes(tmp_path / "scenes")
    config = TrainConfig(image_size=SIDE, test=str(folder / "train"))
    job = open_job(backbone("test_resnet"), folder, config, DetectionConfig(), SHORT)
    assert len(job.rows("train")) == 6, "the test part of the data is not learned from"
    assert "6 of the 6 test images are learned from too" in " ".join(capsys.readouterr().err.split())
    open_job(backbone("test_resnet"), folder, replace(config, test=None), DetectionConfig(), SHORT)
    assert "learned from too" not in " ".join(capsys.readouterr().err.split())


def test_a_class_that_only_the_test_shows_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scenes(tmp_path / "scenes")
    annotations = folder / "train" / "annotations.json"
    content = json.loads(annotations.read_text())
    content["annotations"] = [box for box in content["annotations"] if box["category_id"] == 1]
    annotations.write_text(json.dumps(content))
    open_job(backbone("test_resnet"), folder, TrainConfig(image_size=SIDE), DetectionConfig(), SHORT)
    assert "no training image shows the class 'right'" in " ".join(capsys.readouterr().err.split())


def test_objects_that_will_hardly_be_found_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too small for the finest level in the view, or more in an image than a detector finds."""
    folder = scenes(tmp_path / "data")
    open_job(backbone("test_resnet"), folder, TrainConfig(image_size=SIDE), DetectionConfig(), SHORT)
    assert "boxes are smaller" not in capsys.readouterr().err
    file = folder / "train" / "annotations.json"
    content = json.loads(file.read_text())
    for box in content["annotations"]:
        box["bbox"][2:] = [9, 9]  # 4.5 pixels in the view
    file.write_text(json.dumps(content))
    open_job(backbone("test_resnet"), folder, TrainConfig(image_size=SIDE), DetectionConfig(most=1), SHORT)
    said = " ".join(capsys.readouterr().err.split())
    assert "100% of the boxes are smaller than 8 pixels in views of 64" in said
    assert "--finest 4 or a larger --image-size" in said
    assert "shows 2 objects, of which --most 1 will be found" in said


def test_the_only_image_of_a_class_is_learned_from_not_spared(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "data")
    job = open_job(backbone("test_resnet"), folder, TrainConfig(image_size=SIDE), DetectionConfig(), SHORT)
    assert isinstance(job, Detection)
    many = replace(job.train.data, labels=[np.array([0])] * 299 + [np.array([0, 1])])
    rare = replace(job, train=replace(job.train, data=many))
    for seed in range(30):
        kept, spared = rare.spare(np.arange(300), 0.1, seed)
        assert len(spared) == 30
        assert 299 in kept
        assert sorted([*kept, *spared]) == list(range(300))


@pytest.mark.parametrize(("name", "pretrained_at", "side"), [("test_resnet", 64, WIDE), ("test_vit", 98, 140)])
def test_views_are_of_whole_patches(tmp_path: Path, name: str, pretrained_at: int, side: int) -> None:
    folder = scenes(tmp_path / "data")
    job = open_job(backbone(name, pretrained_at), folder, TrainConfig(), DetectionConfig(), SHORT)
    assert job.image_size == side


def test_masks_that_were_not_predicted_are_never_replaced(tmp_path: Path) -> None:
    folder, out = scenes(tmp_path / "scenes"), tmp_path / "out"
    trained(folder, out, SegmentationConfig(decoder="linear"))
    part = folder / "train"
    before = {file.name: file.read_bytes() for file in (part / "masks").iterdir()}
    with pytest.raises(SelfsightError, match=r"masks: holds files that `predict` did not write"):
        predict(out, str(part / "images"), PredictConfig(out=part))
    assert {file.name: file.read_bytes() for file in (part / "masks").iterdir()} == before
    for _ in range(2):
        assert predict(out, str(part / "images"), PredictConfig(out=tmp_path / "new"))["images"] == 6
    np.savez(tmp_path / "array.npz", images=np.zeros((2, 20, 20, 3), np.uint8))
    with pytest.raises(SelfsightError, match="a segmentation is predicted of image files"):
        predict(out, str(tmp_path / "array.npz"), PredictConfig(out=tmp_path / "array"))


def test_two_trainings_on_labels_never_share_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with RunFolder(tmp_path / "out").alone(), pytest.raises(SelfsightError, match="another process trains"):
        run.train(scenes(tmp_path / "scenes"), SegmentationConfig(), TrainConfig(out=tmp_path / "out"))
