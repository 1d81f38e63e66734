import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import recall_score

from selfsight.data.images import ImageSet
from selfsight.errors import SelfsightError
from selfsight.evaluate import curve
from selfsight.evaluate.curve import EvaluateConfig, evaluate
from selfsight.evaluate.finetune import FinetuneConfig
from selfsight.evaluate.knn import knn_predict
from selfsight.evaluate.results import Row, read_rows
from tests.evaluate.digits import CPU, backbone, digits

QUICK = EvaluateConfig(labels=(0.1, 1.0), per_class=(5,), seeds=2, protocols=("knn", "linear"))


def run(images: ImageSet, config: EvaluateConfig, out: Path, seed: int = 0) -> list[Row]:
    return evaluate(backbone(seed), images, config, method="simclr", run="a", data="digits", out=out, device=CPU)


def kinds(rows: list[Row]) -> set[tuple[str, str, str, int]]:
    return {(r.method, r.protocol, repr(r.labels), r.seed) for r in rows}


def test_every_method_stands_beside_its_baselines(tmp_path: Path) -> None:
    rows = run(digits(450), QUICK, tmp_path)
    expected = {
        (method, protocol, labels, seed)
        for method in ("simclr", "pixels", "random")
        for protocol in ("knn", "linear")
        for labels, seeds in (("0.1", 2), ("5", 2), ("1.0", 1))
        for seed in range(seeds)
    }
    assert kinds(rows) == expected
    assert len(rows) == len(expected)
    assert all(r.task == "classification" and r.metric == "accuracy" and 0 <= r.value <= 1 for r in rows)
    value = {(r.method, r.protocol, repr(r.labels), r.seed): r.value for r in rows}
    assert value["pixels", "linear", "1.0", 0] > 0.85
    assert value["pixels", "linear", "0.1", 0] < value["pixels", "linear", "1.0", 0]
    assert read_rows(tmp_path / "results.jsonl") == rows
    line = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert set(line) == {
        "run", "method", "data", "task", "protocol", "labels", "seed", "metric", "value", "seconds", "used",
        "tested", "commonest",
    }  # fmt: skip
    assert line["tested"] == 150, "a third of 450"
    assert 0.1 <= line["commonest"] < 0.15
    # The network here is the untrained one of the same seed: equal features, equal results.
    assert all(value["simclr", *k[1:]] == v for k, v in value.items() if k[0] == "random")


def test_balanced_accuracy_counts_a_rare_class_as_much_as_a_common_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits(450)
    labels = images.require_labels()
    keep = np.flatnonzero((labels < 2) | (np.arange(450) % 5 == 0))
    images = replace(images, labels=np.where(np.isin(np.arange(450), keep), labels, -1))
    answers: list[NDArray[np.int64]] = []

    def answer(*arguments: Any) -> NDArray[np.int64]:
        answers.append(knn_predict(*arguments))
        return answers[-1]

    monkeypatch.setattr(curve, "knn_predict", answer)
    config = EvaluateConfig(labels=(0.3,), seeds=2, protocols=("knn",), metric="balanced_accuracy")
    rows = run(images, config, tmp_path)
    task = curve.Task(backbone(0), images, config, "simclr", tmp_path, CPU)
    truth = task.labels[task.test]
    assert len(answers) == len(rows) == 6
    for row, found in zip(rows, answers, strict=True):
        assert row.metric == "balanced_accuracy"
        assert row.value == pytest.approx(recall_score(truth, found, average="macro", labels=np.unique(truth)))
        assert row.commonest is None
    assert rows[0].value != pytest.approx((answers[0] == truth).mean())
    plain = run(images, replace(config, metric="accuracy"), tmp_path)
    assert plain[0].value == pytest.approx((answers[0] == truth).mean())
    assert {row.metric for row in read_rows(tmp_path / "results.jsonl")} == {"accuracy"}, "one metric a table"


def test_a_row_says_what_share_of_the_labels_its_amount_came_to(tmp_path: Path) -> None:
    """Of 300 images, 30 or so a class, 1 % is one of each."""
    config = EvaluateConfig(labels=(0.01, 0.1), seeds=1, protocols=("knn",), baselines=False)
    few, more = run(digits(450), config, tmp_path)
    assert few.used == pytest.approx(10 / 300)
    assert more.used == pytest.approx(0.1, abs=0.01)


def test_finetuning_is_compared_with_training_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EvaluateConfig(
        labels=(),
        per_class=(2,),
        seeds=1,
        protocols=("finetune",),
        finetune=FinetuneConfig(batch_size=32, min_steps=3, max_steps=3),
    )
    rows = run(digits(90), config, tmp_path)
    assert kinds(rows) == {("simclr", "finetune", "2", 0), ("scratch", "finetune", "2", 0)}
    assert "2 labels a class ends after 3 steps, from scratch too" in " ".join(capsys.readouterr().err.split())
    assert kinds(run(digits(90), replace(config, baselines=False), tmp_path)) == {("simclr", "finetune", "2", 0)}


def test_a_second_call_computes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(QUICK, labels=(0.1,), per_class=(), protocols=("knn",))
    first = run(digits(), short, tmp_path)
    size = (tmp_path / "results.jsonl").stat().st_size

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(curve, "extract", fail)
        patch.setattr(curve, "knn_predict", fail)
        assert run(digits(), short, tmp_path) == first
    assert (tmp_path / "results.jsonl").stat().st_size == size
    with monkeypatch.context() as patch:
        patch.setattr(curve, "extract", fail)  # the features are there
        more = run(digits(), replace(short, seeds=3), tmp_path)
    assert more[: len(first)] == first
    assert len(more) == 9


@pytest.mark.parametrize("change", ["weights", "split", "labels", "pixels"])
def test_results_of_other_weights_or_data_are_not_reused(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateConfig(labels=(0.5,), seeds=1, protocols=("linear",), baselines=False)
    images = digits()
    [old] = run(images, config, tmp_path)
    if change == "labels":
        images = replace(images, labels=np.random.default_rng(0).permutation(images.require_labels()))
    elif change == "pixels":
        images = replace(images, images=np.random.default_rng(0).permuted(np.asarray(images.images), axis=0))
    elif change == "split":
        images = replace(images, split=np.where(np.arange(len(images)) < 300, "train", "test"))
    capsys.readouterr()
    [new] = run(images, config, tmp_path, seed=1 if change == "weights" else 0)
    assert "1 results on digits are forgotten" in " ".join(capsys.readouterr().err.split())
    assert new.value != old.value
    assert read_rows(tmp_path / "results.jsonl") == [new]


def test_what_a_change_left_unmeasured_is_not_taken_from_before(tmp_path: Path) -> None:
    both = EvaluateConfig(labels=(0.2, 0.5), seeds=1, protocols=("linear",), baselines=False)
    old = run(digits(), both, tmp_path)
    run(digits(), replace(both, labels=(0.5,)), tmp_path, seed=1)  # of other weights, and only a part
    new = run(digits(), both, tmp_path, seed=1)
    assert new[0].value != old[0].value
    assert read_rows(tmp_path / "results.jsonl") == new[::-1]


def test_the_features_are_saved_with_their_names(tmp_path: Path) -> None:
    images = digits(90)
    run(images, EvaluateConfig(labels=(1.0,), seeds=1, protocols=("knn",)), tmp_path)
    with np.load(tmp_path / "features.npz") as file:
        assert file["features"].shape == (90, backbone().dim)
        assert [images.names[row] for row in file["rows"]] == file["names"].tolist()
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_data_without_a_split_gets_a_stratified_one(tmp_path: Path) -> None:
    task = curve.Task(backbone(), digits(300, split=False), EvaluateConfig(test_share=0.3), "simclr", tmp_path, CPU)
    labels = digits(300).require_labels()
    assert not set(task.train) & set(task.test)
    assert len(task.train) + len(task.test) == 300
    for c in range(10):
        assert abs((labels[task.test] == c).mean() - (labels == c).mean()) < 0.02


def test_images_that_are_learned_from_too_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By whatever path a table names them."""
    images = digits(120)
    files = [str(tmp_path / f"{i}.png") for i in range(120)]
    config = EvaluateConfig(labels=(1.0,), seeds=1, protocols=("knn",), baselines=False)
    run(replace(images, files=files), config, tmp_path)
    assert "learned from too" not in capsys.readouterr().err
    files[0] = str(tmp_path / "elsewhere" / ".." / "1.png")  # image 0 is of the test part, 1 of the training
    (tmp_path / "elsewhere").mkdir()
    run(replace(images, files=files), config, tmp_path)
    assert "1 of the 40 test images are learned from too" in " ".join(capsys.readouterr().err.split())


def test_exact_copies_are_not_drawn_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By whatever name; a class that shows nothing else stays in the test, which is said."""
    images = replace(digits(120), split=None)
    config = EvaluateConfig(labels=(1.0,), seeds=1, protocols=("knn",), baselines=False)
    plain = curve.Task(backbone(), images, config, "simclr", tmp_path, CPU)
    copied = np.array(images.images)
    for label, count in ((3, 1), (5, len(images))):  # one of the test's threes, all fives
        of = plain.labels == label
        test, train = (np.flatnonzero(of & (plain.split == part)) for part in ("test", "train"))
        copied[test[:count]] = copied[train[0]]
        if count > 1:
            copied[train] = copied[train[0]]
    capsys.readouterr()
    task = curve.Task(backbone(), replace(images, images=copied), config, "simclr", tmp_path, CPU)
    threes, fives = (np.flatnonzero((plain.labels == label) & (plain.split == "test")) for label in (3, 5))
    assert set(plain.test) - set(task.test) == {threes[0]}
    assert set(task.train) - set(plain.train) == {threes[0]}
    words = " ".join(capsys.readouterr().err.split())
    assert f"1 of {len(plain.test)} images drawn for the test are exact copies of others" in words
    assert f"{len(fives)} of the {len(task.test)} test images are learned from too" in words
    groups = np.arange(len(images)) // 2
    grouped = replace(images, images=copied, groups=groups)
    task = curve.Task(backbone(), grouped, config, "simclr", tmp_path, CPU)
    assert not set(groups[task.test]) & set(groups[task.train]), "groups stay whole"


def test_unlabeled_images_are_left_out(tmp_path: Path) -> None:
    images = digits(120)
    labels = images.require_labels().copy()
    labels[::5] = -1
    rows = run(
        replace(images, labels=labels), EvaluateConfig(labels=(1.0,), seeds=1, protocols=("knn", "linear")), tmp_path
    )
    assert len(rows) == 6
    with np.load(tmp_path / "features.npz") as file:
        assert (labels[file["rows"]] >= 0).all()


def test_errors_say_what_to_mend(tmp_path: Path) -> None:
    images = digits(100)
    labels = images.require_labels().copy()
    with pytest.raises(SelfsightError, match="no labels; put images in one subfolder"):
        run(replace(images, labels=None), QUICK, tmp_path)
    with pytest.raises(SelfsightError, match=r"--per-class 50: class '.' has . labeled images, fewer than the 50"):
        run(images, replace(QUICK, per_class=(50,)), tmp_path)
    with pytest.raises(SelfsightError, match=r"--labels 1.5: .*fraction"):
        run(images, replace(QUICK, labels=(1.5,)), tmp_path)
    with pytest.raises(SelfsightError, match="all labeled images are of one class"):
        run(replace(images, labels=np.where(labels == 7, 7, -1)), QUICK, tmp_path)
    for wrong in ({"seeds": 0}, {"seed": -1}, {"test_share": 1.0}):
        with pytest.raises(SelfsightError, match=f"--{next(iter(wrong)).replace('_', '-')} "):
            replace(QUICK, **wrong)
    lonely = np.where(labels == 7, 3, labels)
    lonely[0] = 7
    with pytest.raises(SelfsightError, match="class '7' has a single image"):
        run(replace(images, labels=lonely, split=None), QUICK, tmp_path)
    with pytest.raises(SelfsightError, match="class '7' has no image in the train part"):
        run(replace(images, labels=lonely), QUICK, tmp_path)  # row 0 is a test row
    with pytest.raises(SelfsightError, match="no labeled image in the test part"):
        run(replace(images, split=np.full(100, "train")), QUICK, tmp_path)
    assert not list(tmp_path.iterdir())
