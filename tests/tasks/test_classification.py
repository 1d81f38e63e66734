"""Classifiers with few labels: what they learn, what they say of themselves, and what is kept of them."""

import copy
import csv
import functools
import io
import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from selfsight.backbones import Backbone, create, plan
from selfsight.data import open_images
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import extract
from selfsight.evaluate.knn import knn_predict
from selfsight.evaluate.savings import savings
from selfsight.run import RunFolder
from selfsight.tasks import curve
from selfsight.tasks.classification import Classification, ClassificationConfig, Head, open_classified
from selfsight.tasks.curve import TrainConfig, default_learning, open_job, train
from selfsight.tasks.learning import LearnConfig, Learner, learn
from selfsight.tasks.predict import PredictConfig, load_model, predict
from tests.evaluate.digits import CPU
from tests.evaluate.digits import digits as small_digits

SIDE = 16
SHORT = replace(default_learning("classification"), min_steps=60, max_steps=60, batch_size=32, checks=2)
BRIEF = replace(SHORT, min_steps=12, max_steps=12)
"""Where it doesn't matter how well a model has learned."""


def net(name: str = "test_resnet") -> Backbone:
    """A backbone of random weights, with BatchNorm statistics of images."""
    return copy.deepcopy(warmed(name))


@functools.cache
def warmed(name: str) -> Backbone:
    seen = np.asarray(small_digits(200).images[np.arange(200)])
    torch.manual_seed(0)
    backbone = create(plan(name, SIDE, 1, (0.3,), (0.38,)))
    normed = any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    with torch.no_grad():
        for _ in range(30 if normed else 0):
            backbone.train()(torch.from_numpy(seen).float() / 255)
    return backbone.eval()


def run(
    data: Path, out: Path, settings: ClassificationConfig, learning: LearnConfig = SHORT, **options: Any
) -> curve.Trained:
    result = train(net(), data, TrainConfig(**options), settings, learning, method="simclr", run="run", out=out)
    assert result is not None
    return result


def values(result: curve.Trained, metric: str = "accuracy") -> dict[tuple[str, str, float | int, int], float]:
    return {(r.method, r.protocol, r.labels, r.seed): r.value for r in result.rows if r.metric == metric}


def test_a_classifier_learns_is_kept_and_predicts(digits_file: Path, tmp_path: Path) -> None:
    result = run(digits_file, tmp_path / "out", ClassificationConfig())
    (value,) = values(result).values()
    assert value > 0.7
    with (tmp_path / "out" / "confusion.csv").open(newline="") as file:
        table = list(csv.reader(file))
    counts = np.array([line[1:] for line in table[1:]], np.int64)
    assert counts.trace() / counts.sum() == pytest.approx(value)
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.width > 300
    # The model that was kept answers as the one that was scored.
    model = load_model(tmp_path / "out")
    images = open_images(digits_file, image_size=SIDE)
    job = open_job(net(), digits_file, TrainConfig(), ClassificationConfig(), SHORT)
    assert isinstance(job, Classification)
    scores = job.scores(model.model, "test", job.rows("test"))
    assert scores["accuracy"] == pytest.approx(value)
    shares = torch.stack(model.answer(images, np.arange(40)))
    assert torch.allclose(shares.sum(1), torch.ones(40), atol=1e-4)
    assert model.classes == [str(k) for k in range(10)]


def test_amounts_seeds_and_starts_are_all_there_and_are_not_computed_again(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace(SHORT, min_steps=2, max_steps=2)
    options: dict[str, Any] = {"labels": (0.1,), "per_class": (5,), "seeds": 2, "learning": quick}
    result = run(digits_file, tmp_path / "out", ClassificationConfig(), **options)
    wanted = {(m, "finetune", a, s) for m in ("simclr", "scratch") for a in (0.1, 5) for s in (0, 1)}
    assert set(values(result)) == wanted
    assert result.protocol == "finetune"

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(curve, "learn", never)
    assert run(digits_file, tmp_path / "out", ClassificationConfig(), **options).rows == result.rows


def test_linear_and_knn_heads_leave_the_backbone_as_it_is(digits_file: Path, tmp_path: Path) -> None:
    images = open_images(digits_file, image_size=SIDE)
    heads: tuple[Head, ...] = ("linear", "knn")
    for head in heads:
        out = tmp_path / head
        result = run(digits_file, out, ClassificationConfig(head=head), labels=(0.1, 1.0), seeds=1)
        assert {row.method for row in result.rows} == {"simclr", "random"}, "no training, so nothing is from scratch"
        model = load_model(out)
        for a, b in zip(model.model.backbone.parameters(), net().parameters(), strict=True):
            assert torch.equal(a.cpu(), b)
        job = open_job(net(), digits_file, TrainConfig(), ClassificationConfig(head=head), SHORT)
        assert isinstance(job, Classification)
        answer = job.logits(model.model, "test", job.rows("test")).argmax(1).numpy()
        rows, test = job.rows("train"), job.rows("test")
        x = extract(net(), images, np.concatenate([rows, test]), device=CPU)
        labels = images.require_labels()
        if head == "knn":
            expected = knn_predict(x[: len(rows)], labels[rows], x[len(rows) :], 10)
            assert (answer == expected).mean() > 0.99
        assert values(result)["simclr", head, 1.0, 0] == pytest.approx((answer == labels[test]).mean())


@pytest.fixture
def several(tmp_path: Path, digits: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Path:
    """Two digits side by side, labelled 'a|b', as PNGs and a CSV; some show none, of some it is unknown."""
    rows = []
    for i in range(0, 400, 2):
        left, right = digits[0][i], digits[0][i + 1]
        name = f"{i}.png"
        pixels = np.concatenate([left, right], 1)
        label = "|".join(sorted({str(digits[1][i]), str(digits[1][i + 1])}))
        if i % 14 == 0:
            pixels, label = np.zeros_like(pixels), "|"
        if i % 22 == 2:
            label = ""
        Image.fromarray(pixels).save(tmp_path / name)
        rows.append([name, label])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *rows])
    return tmp_path / "labels.csv"


def test_an_image_may_have_several_classes_or_none(several: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": SIDE, "channels": 1, "strict": False, "test_share": 0.2, "seed": 0}
    train_part, test_part = open_classified(several, None, "|", **options)
    assert train_part is test_part
    assert list(train_part.classes) == [str(k) for k in range(10)]
    with several.open(newline="") as file:
        label = dict(list(csv.reader(file))[1:])
    for i, name in enumerate(train_part.images.names):
        assert train_part.known[i] == (label[name] != "")
        assert {str(k) for k in train_part.present[i]} == set(label[name].split("|")) - {""}
    result = run(several, tmp_path / "out", ClassificationConfig(separator="|"))
    assert result.metric == "mean_average_precision"
    assert not (tmp_path / "out" / "confusion.png").exists()
    (value,) = values(result, "mean_average_precision").values()
    assert value > 0.3, "chance is about 0.2"
    predict(tmp_path / "out", str(several.parent / "2.png"), PredictConfig(out=tmp_path / "answers", score=0.0))
    with (tmp_path / "answers" / "predictions.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert set(line["class"].split("|")) == {str(k) for k in range(10)}, "all are above 0"


def test_a_model_is_calibrated_on_images_that_it_has_not_learned_from(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, asked = [], []
    calibrate = Classification.calibrate

    def watched_learn(learner: Learner, device: torch.device) -> None:
        learned.append(learner.rows)
        learn(learner, device)

    def watched_calibrate(self: Any, model: Any, rows: Any) -> None:
        asked.append(rows)
        calibrate(self, model, rows)

    monkeypatch.setattr(curve, "learn", watched_learn)
    monkeypatch.setattr(Classification, "calibrate", watched_calibrate)
    run(digits_file, tmp_path / "out", ClassificationConfig(), BRIEF)
    assert float(load_model(tmp_path / "out").model.get_buffer("temperature")) != 1
    share = len(asked[0]) / (len(asked[0]) + len(learned[0]))
    assert share == pytest.approx(SHORT.validation, abs=0.01)
    assert not set(asked[0]) & set(learned[0])
    run(digits_file, tmp_path / "few", ClassificationConfig(), BRIEF, per_class=(4,), seeds=1, baselines=False)
    assert float(load_model(tmp_path / "few").model.get_buffer("temperature")) == 1, "too few to tell"


def test_validation_takes_a_share_of_each_class_and_never_its_last_label(digits_file: Path) -> None:
    job = open_job(net(), digits_file, TrainConfig(), ClassificationConfig(), SHORT)
    assert isinstance(job, Classification)
    labels = job.train.targets.argmax(1)
    rows = job.few(110, 0)
    trained, validated = job.spare(rows, 0.2, 0)
    assert np.bincount(labels[validated]).tolist() == [22] * 10
    assert np.bincount(labels[trained]).tolist() == [88] * 10
    assert not np.array_equal(job.spare(rows, 0.2, 1)[1], validated)
    rare = np.concatenate([rows[labels[rows] != 3], rows[labels[rows] == 3][:4]])
    assert np.bincount(labels[job.spare(rare[:1000], 0.2, 0)[1]], minlength=10)[3] == 0
    trained, validated = job.spare(job.few(20, 0), 0.2, 0)
    assert not len(validated), "of 200 labels each is worth more in the training"
    assert trained.tolist() == job.few(20, 0).tolist()


def test_a_run_stopped_while_it_is_tested_does_not_train_again(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Classification.scores

    def stopped(self: Any, model: Any, part: str, rows: Any) -> dict[str, float]:
        if part == "test":
            raise KeyboardInterrupt
        return scores(self, model, part, rows)

    monkeypatch.setattr(Classification, "scores", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(digits_file, tmp_path / "out", ClassificationConfig(), BRIEF)
    monkeypatch.setattr(Classification, "scores", scores)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(curve, "learn", never)
        again = run(digits_file, tmp_path / "out", ClassificationConfig(), BRIEF)
    assert values(again) == values(run(digits_file, tmp_path / "whole", ClassificationConfig(), BRIEF))
    assert not list((tmp_path / "out" / "parts").rglob("*.safetensors"))


def test_another_split_is_not_answered_from_before(digits_file: Path, tmp_path: Path) -> None:
    with np.load(digits_file) as digits:
        images, labels = digits["images"][:120], digits["labels"][:120]
    split = np.where(np.arange(120) % 2, "train", "test")
    for drawn in (split, split[::-1]):
        np.savez(tmp_path / "split.npz", images=images, labels=labels, split=drawn)
        again = pytest.raises(SelfsightError, match="holds a training with other parts")
        with nullcontext() if drawn is split else again:
            run(tmp_path / "split.npz", tmp_path / "out", ClassificationConfig(head="knn"))


def test_a_training_that_its_steps_cut_short_says_so(
    digits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps, expected in ((3, True), (300, False)):
        learning = replace(SHORT, min_steps=3, max_steps=steps, epochs=4.0, batch_size=32)
        options: dict[str, Any] = {"labels": (0.05,), "seeds": 1, "baselines": False}
        run(digits_file, tmp_path / str(steps), ClassificationConfig(), learning, **options)
        said = " ".join(capsys.readouterr().err.split())
        assert ("--max-steps 3: that is 1.3" in said and "passes, not the 4 of --epochs" in said) == expected


def test_pseudo_labels_use_the_rest_and_never_the_test(digits_file: Path, tmp_path: Path) -> None:
    config = ClassificationConfig(pseudo_labels=0.5)
    job = open_job(net(), digits_file, TrainConfig(), config, SHORT)
    assert isinstance(job, Classification)
    few = job.few(0.1, 0)
    model = job.model(net(), few)
    more, rows = job.with_pseudo_labels(model, few, few[:100])
    added = np.setdiff1d(rows, few)
    assert set(few[:100]) <= set(rows)
    assert not set(few[100:]) & set(rows), "those kept for validation stay there"
    assert 0 < len(added) < len(job.rows("train")) - len(few)
    assert not set(added) & set(job.rows("test"))
    assert np.isin(rows, few).mean() >= 0.24
    shares = job.logits(model, "train", added).softmax(1)
    assert 0.46 <= float(shares.max(1).values.min()) < 0.5, "0.9 · 0.5 + 0.01: what smoothing takes is given back"
    model.get_buffer("temperature").fill_(1.001)
    found = job.with_pseudo_labels(model, few, few[:100])[1]
    assert float(job.logits(model, "train", np.setdiff1d(found, few)).softmax(1).max(1).values.min()) >= 0.5
    model.get_buffer("temperature").fill_(1.0)
    assert np.array_equal(more.train.targets[added].argmax(1), shares.argmax(1).numpy())
    assert np.array_equal(more.train.targets[few], job.train.targets[few])
    result = run(digits_file, tmp_path / "out", config, BRIEF, labels=(0.1,), seeds=1, baselines=False)
    assert set(values(result)) == {("simclr", "finetune", 0.1, 0), ("simclr", "pseudo", 0.1, 0)}


def test_settings_that_make_no_sense_are_named(several: Path, digits_file: Path) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("pseudo-labels", {"pseudo_labels": 0.9, "separator": "|"}),
        ("pseudo-labels", {"pseudo_labels": 95.0}),
        ("crop", {"crop": 0.0}),
        ("mixup", {"mixup": -1.0}),
        ("cutmix", {"cutmix": -1.0}),
        ("randaugment", {"randaugment": 31}),
    ]
    for flag, options in wrong:
        with pytest.raises(SelfsightError, match=f"--{flag}"):
            ClassificationConfig(**options)
    job = open_job(net(), several, TrainConfig(), ClassificationConfig(separator="|"), SHORT)
    with pytest.raises(SelfsightError, match="--per-class"):
        job.few(5, 0)
    with pytest.raises(SelfsightError, match="multiple of"):
        open_job(net("test_vit"), digits_file, TrainConfig(image_size=17), ClassificationConfig(), SHORT)


def test_all_of_the_labels_are_not_one_a_class(digits_file: Path, tmp_path: Path) -> None:
    config = ClassificationConfig(head="linear")
    result = run(digits_file, tmp_path / "out", config, labels=(1.0,), per_class=(1,), seeds=1, baselines=False)
    found = {repr(row.labels): row.value for row in result.main}
    assert found["1.0"] > found["1"] + 0.1
    assert result.most == "1.0"


def test_images_that_cannot_be_read_are_listed_or_stop_the_run(several: Path, tmp_path: Path) -> None:
    (several.parent / "4.png").write_bytes(b"no picture")
    run(several, tmp_path / "out", ClassificationConfig(separator="|", head="knn"))
    assert (tmp_path / "out" / "problems.csv").read_text().splitlines()[1].startswith("4.png,")
    with pytest.raises(SelfsightError, match=r"4\.png"):
        run(several, tmp_path / "strict", ClassificationConfig(separator="|", head="knn"), strict=True)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0), (0, 1.0), (0.4, 1.0)])
def test_mixup_and_cutmix_blend_images_and_labels_alike(digits_file: Path, mixup: float, cutmix: float) -> None:
    settings = ClassificationConfig(mixup=mixup, cutmix=cutmix, label_smoothing=0, crop=1.0)
    job = open_job(net(), digits_file, TrainConfig(), settings, SHORT)
    assert isinstance(job, Classification)

    class Watched(torch.nn.Module):
        """Says of every image, whatever it shows, that it is of class 1 with odds of e² to each other class."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return 2 * torch.eye(10)[1].expand(len(x), -1)

    watched: Any = Watched()
    pixels = torch.stack([torch.full((1, 48, 48), value, dtype=torch.uint8) for value in (0, 255)])
    targets = [{"aspect": torch.tensor(1.0), "classes": torch.eye(10)[k]} for k in (0, 1)]
    normal = math.log(math.e**2 + 9)
    shares, pasted = [], []
    for seed in range(30):
        torch.manual_seed(seed)
        loss = float(job.loss(watched, pixels, targets))
        view = watched.seen[-1]
        white = view.mean((1, 2, 3))  # as white as it is, as much of class 1
        assert loss == pytest.approx(normal - 2 * float(white.mean()), abs=1e-4)
        shares.append(float(white[1]))
        pasted.append(bool(((view < 1e-4) | (view > 1 - 1e-4)).all()))
    assert any(0.05 < share < 0.95 for share in shares)
    assert len(set(shares)) > 20
    assert any(pasted) == bool(cutmix)
    assert all(pasted) == (not mixup)


def test_randaugment_changes_each_image_in_its_own_way_and_again_alike(digits_file: Path) -> None:
    plain, changed = (
        open_job(net(), digits_file, TrainConfig(), ClassificationConfig(randaugment=strength), SHORT)
        for strength in (0, 9)
    )

    def drawn(job: Any, row: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        pixels: Tensor = job.example(row)[0]
        return pixels

    images = [drawn(changed, 0, seed) for seed in range(10)]
    assert len({image.numpy().tobytes() for image in images}) > 3
    assert all(image.shape == drawn(plain, 0, 0).shape and image.dtype == torch.uint8 for image in images)
    assert torch.equal(drawn(changed, 0, 3), drawn(changed, 0, 3))
    assert torch.equal(drawn(plain, 0, 1), drawn(plain, 0, 2))


def test_randaugment_of_images_of_many_bands_is_refused_in_one_line(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 4), np.uint8)
    np.savez(tmp_path / "bands.npz", images=bands, labels=np.arange(8) % 2)
    backbone = create(plan("test_resnet", 16, 4, (0.5,) * 4, (0.25,) * 4))
    settings = ClassificationConfig(randaugment=9)
    with pytest.raises(SelfsightError, match=r"--randaugment: .*bands\.npz has 4 bands"):
        open_job(backbone, tmp_path / "bands.npz", TrainConfig(image_size=16), settings, SHORT)


def test_rates_of_a_pretrained_vit_fall_towards_the_first_block(digits_file: Path, tmp_path: Path) -> None:
    job = open_job(net("test_vit"), digits_file, TrainConfig(), ClassificationConfig(), SHORT)
    rows, none = job.rows("train")[:8], np.zeros(0, np.int64)

    def peaks(pretrained: bool, **options: Any) -> dict[str, float]:
        model = job.model(net("test_vit"))
        config = LearnConfig(**({"lr": 1.0} | options))
        learner = Learner(job, model, rows, none, config, RunFolder(tmp_path), pretrained, 0)
        names = {id(p): name for name, p in model.named_parameters()}
        groups = learner.configure_optimizers().param_groups
        assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
        return {names[id(p)]: g["peak"] for g in groups for p in g["params"]}

    found = peaks(pretrained=True)
    assert found["head.linear.weight"] == 1
    depth = len(net("test_vit").model.blocks)
    blocks = [found[f"backbone.model.blocks.{i}.attn.qkv.weight"] for i in range(depth)]
    assert blocks == pytest.approx([0.75 ** (depth - 1 - i) for i in range(depth)])
    assert found["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.75**depth)
    assert set(peaks(pretrained=False).values()) == {1.0}, "from scratch all learn alike"
    assert set(peaks(pretrained=True, layer_decay=1.0).values()) == {1.0}
    assert set(peaks(pretrained=False, lr=None).values()) == {5e-4}, "a ViT's default"


def test_a_vit_learns_without_fused_attention_on_a_cpu(digits_file: Path, tmp_path: Path, fused: list[bool]) -> None:
    brief = replace(SHORT, min_steps=2, max_steps=2)
    job = open_job(net("test_vit"), digits_file, TrainConfig(), ClassificationConfig(), brief)
    model, rows, none = job.model(net("test_vit")), job.rows("train")[:32], np.zeros(0, np.int64)
    learn(Learner(job, model, rows, none, brief, RunFolder(tmp_path), True, 0), CPU)
    assert not any(fused)


def test_a_class_of_the_test_that_training_has_not_is_named(digits_file: Path, tmp_path: Path) -> None:
    with np.load(digits_file) as digits:
        np.savez(tmp_path / "few.npz", images=digits["images"][:200], labels=digits["labels"][:200] % 5)
    with pytest.raises(SelfsightError, match="'5'"):
        open_job(net(), tmp_path / "few.npz", TrainConfig(test=str(digits_file)), ClassificationConfig(), SHORT)


def test_predictions_of_a_folder_are_a_table_and_pictures(digits_file: Path, tmp_path: Path) -> None:
    run(digits_file, tmp_path / "out", ClassificationConfig(head="linear"))
    (tmp_path / "new" / "sub").mkdir(parents=True)
    with np.load(digits_file) as digits:
        pixels, labels = digits["images"][:30], digits["labels"][:30]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "new" / "sub" / f"{i:02}.png")
    written = predict(tmp_path / "out", str(tmp_path / "new"), PredictConfig(out=tmp_path / "answers", batch_size=7))
    assert written["images"] == 30
    with (tmp_path / "answers" / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == [f"sub/{i:02}.png" for i in range(30)]
    assert np.mean([int(line["class"]) == label for line, label in zip(lines, labels, strict=True)]) > 0.7
    for line in lines:
        shares = [float(line[str(k)]) for k in range(10)]
        assert float(line["confidence"]) == max(shares) == shares[int(line["class"])]
        assert sum(shares) == pytest.approx(1, abs=1e-2)
    assert len(list((tmp_path / "answers" / "overlays").rglob("*.png"))) == 30
    assert not (tmp_path / "answers" / "masks").exists()
    assert json.loads(json.dumps(written))["predictions"].endswith("predictions.csv")


def test_copies_of_test_images_get_no_pseudo_label(digits_file: Path, tmp_path: Path) -> None:
    with np.load(digits_file) as digits:
        images, labels = digits["images"][:300].copy(), digits["labels"][:300]
    images[100:110] = images[290:300]
    split = np.where(np.arange(300) < 280, "train", "test")
    np.savez(tmp_path / "copies.npz", images=images, labels=labels, split=split)
    job = open_job(net(), tmp_path / "copies.npz", TrainConfig(), ClassificationConfig(pseudo_labels=1e-6), SHORT)
    assert isinstance(job, Classification)
    few = np.arange(100)
    _, rows = job.with_pseudo_labels(job.model(net(), few), few, few)
    assert set(rows) == set(range(280)) - set(range(100, 110))


def standard_input(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(text)), encoding="utf-8"))


def test_predictions_of_paths_on_standard_input(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(digits_file, tmp_path / "out", ClassificationConfig(head="knn"))
    file = tmp_path / "a.png"
    with np.load(digits_file) as digits:
        Image.fromarray(digits["images"][0]).save(file)
    config = PredictConfig(out=tmp_path / "answers", cache=False)
    standard_input(monkeypatch, f"{file}\n\n{tmp_path}/none.png\n{file}\n")
    written = predict(tmp_path / "out", "-", config)
    assert (written["images"], written["skipped"]) == (1, 1)
    assert "none.png,no such file" in (tmp_path / "answers" / "skipped.csv").read_text()
    with (tmp_path / "answers" / "predictions.csv").open(newline="") as table:
        (line,) = csv.DictReader(table)
    assert line["path"] == str(file), "as it was given"
    damaged = tmp_path / "far" / "b.png"
    damaged.parent.mkdir()
    damaged.write_bytes(file.read_bytes()[:60])
    standard_input(monkeypatch, f"{file}\n{damaged}\n")
    predict(tmp_path / "out", "-", config)
    assert f"{damaged}," in (tmp_path / "answers" / "skipped.csv").read_text()
    odd = tmp_path / os.fsdecode(b"caf\xe9\n.png")
    odd.write_bytes(file.read_bytes())
    standard_input(monkeypatch, f"{odd}\0{file}\0")
    assert predict(tmp_path / "out", "-", config)["images"] == 2
    for text, words in (("", "standard input names no image, it is empty"), ("x.png", r"x\.png: no such file")):
        standard_input(monkeypatch, text)
        with pytest.raises(SelfsightError, match=words):
            predict(tmp_path / "out", "-", config)


def test_other_weights_are_a_start_to_compare_with(digits_file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(
        {k: v.contiguous() for k, v in timm.create_model("test_resnet", in_chans=1).state_dict().items()}, weights
    )
    options: dict[str, Any] = {"per_class": (3,), "seeds": 1, "imagenet": str(weights)}
    result = run(digits_file, tmp_path / "out", ClassificationConfig(head="linear"), image_size=32, **options)
    assert {row.method for row in result.rows} == {"simclr", "imagenet", "random"}
    vit = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", in_chans=1).state_dict(), vit)  # of 160 pixels
    with np.load(digits_file) as digits:
        np.savez(tmp_path / "few.npz", images=digits["images"][:200], labels=digits["labels"][:200])
    config = TrainConfig(imagenet=str(vit), image_size=32, labels=(1.0,), seeds=1)
    brief, out, settings = replace(SHORT, min_steps=2, max_steps=2), tmp_path / "vit", ClassificationConfig()
    trained = train(net("test_vit"), tmp_path / "few.npz", config, settings, brief, method="dino", run="run", out=out)
    assert trained is not None
    assert {row.method for row in trained.main} == {"dino", "imagenet", "scratch"}
    ours = [row for row in trained.main if row.method != "imagenet"]
    assert trained.savings() == [s.sentence() for s in savings(ours)], "what other weights save is not ours"
    options["imagenet"] = str(tmp_path / "none.pth")
    with pytest.raises(SelfsightError, match="no such file"):
        run(digits_file, tmp_path / "other", ClassificationConfig(), image_size=32, **options)


def test_a_class_of_the_datas_own_test_part_that_training_has_not_is_named(digits_file: Path, tmp_path: Path) -> None:
    with np.load(digits_file) as digits:
        images, labels = digits["images"][:200], digits["labels"][:200]
    np.savez(tmp_path / "parts.npz", images=images, labels=labels, split=np.where(labels == 9, "test", "train"))
    with pytest.raises(SelfsightError, match="class '9' has no image in the train part"):
        open_job(net(), tmp_path / "parts.npz", TrainConfig(), ClassificationConfig(), SHORT)


def test_the_head_on_a_frozen_backbone_begins_at_its_probe_pretrained_or_not(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve, "learn", lambda *_: None)
    learning = replace(SHORT, frozen=True)
    job = open_job(net(), digits_file, TrainConfig(), ClassificationConfig(), learning)
    for pretrained in (True, False):
        model = curve.Training(job, net(), learning, tmp_path / str(pretrained), pretrained, 0).fit(job.rows("train"))
        scores = job.scores(model, "test", job.rows("test"))
        assert scores["accuracy"] > 0.6, "without a step"


@pytest.mark.parametrize("separator", [None, "|"])
def test_a_patients_images_are_on_one_side_of_every_split(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str | None
) -> None:
    monkeypatch.setattr("selfsight.tasks.classification.LABELS_ENOUGH", 50)
    with np.load(digits_file) as digits:
        lines = ["path,label,group"]
        for row in range(200):
            Image.fromarray(digits["images"][row]).save(tmp_path / f"{row}.png")
            lines.append(f"{row}.png,{digits['labels'][row]},patient {row // 4}")
    (tmp_path / "table.csv").write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ","]))
    settings = ClassificationConfig(separator=separator)
    job = open_job(net(), tmp_path / "table.csv", TrainConfig(), settings, SHORT)
    assert isinstance(job, Classification)
    groups = job.train.images.groups
    assert groups is not None
    assert len(np.unique(groups)) == 51, "an image of no group is one of its own"
    rows = job.rows("train")
    kept, spared = job.spare(rows, 0.2, 0)
    sides = [set(groups[part]) for part in (kept, spared, job.rows("test"))]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert not sides[2] & (sides[0] | sides[1])
    if separator is None:
        few = job.few(0.5, 0)
        kept, spared = job.spare(few, 0.2, 0)
        eager = replace(job, config=replace(settings, pseudo_labels=1e-6))
        _, taught = eager.with_pseudo_labels(job.model(net(), few), few, kept)
        assert len(spared)
        assert len(np.setdiff1d(taught, few)), "some have got a pseudo-label"
        assert not set(groups[taught]) & set(groups[spared]), "no relatives of what it is validated on"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda: ClassificationConfig(separator=""), "--separator"),
        (lambda: TrainConfig(seed=-1), "--seed -1"),
        (lambda: TrainConfig(seeds=0), "--seeds 0"),
        (lambda: TrainConfig(test_share=0.0), r"--test-share 0\.0"),
        (lambda: PredictConfig(batch_size=0), "--batch-size 0"),
    ],
)
def test_values_that_make_no_sense_are_named(settings: Callable[[], object], words: str) -> None:
    with pytest.raises(SelfsightError, match=words):
        settings()
