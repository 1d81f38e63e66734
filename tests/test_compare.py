"""Comparing pretext tasks: alike for each, resumable method by method, baselines once, one page."""

import json
import math
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from selfsight import api
from selfsight.compare import CompareConfig, compare
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.evaluate.curve import EvaluateConfig
from selfsight.evaluate.finetune import FinetuneConfig
from selfsight.evaluate.results import read_rows
from selfsight.methods.rotation import Rotation
from selfsight.methods.simclr import SimCLR
from selfsight.report import Comparison, print_comparison
from selfsight.run import RunFolder
from selfsight.training import Pretrain

pytestmark = pytest.mark.usefixtures("few_checks")
Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]
SHORT = FinetuneConfig(min_steps=2, epochs=1)
FEW = EvaluateConfig(per_class=(3,), seeds=2, protocols=("linear",), finetune=SHORT)


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page a run, which takes longer than its training: where nobody looks at them."""
    monkeypatch.setattr(api.Run, "report", lambda run, data=None: run.path / "report.html")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=digits[0][:200], labels=digits[1][:200])
    return path


def run(
    data: Path, out: Path, *methods: str, evaluation: EvaluateConfig = FEW, epochs: float = 1, seed: int = 0
) -> Comparison:
    training = Pretrain(out=out, backbone="test_resnet", epochs=epochs, batch_size=40, seed=seed)
    return compare(data, CompareConfig(methods), training, evaluation)


@pytest.mark.usefixtures("no_pages")
def test_intervals_are_over_trainings_where_there_are_some(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Pretrain(out=tmp_path / "out", backbone="test_resnet", epochs=0.5, batch_size=40, seed=3)
    one, two = (
        compare(data, CompareConfig(("rotation",), trainings=count), training, replace(FEW, protocols=("knn",)))
        for count in (1, 2)
    )
    own = [row for row in two.rows if row.method == "rotation"]
    assert [row.seed for row in own] == [3, 4]
    draws = [row.value for row in one.rows if row.method == "rotation"]
    assert len(draws) == 2
    assert own[0].value == pytest.approx(sum(draws) / 2), "a training counts with the mean of its draws"
    runs = [RunFolder(tmp_path / "out" / name) for name in ("rotation", "rotation-seed4")]
    assert len({run.weights_file.read_bytes() for run in runs}) == 2
    baselines = [row.method for row in two.rows if row.method != "rotation"]
    assert baselines == [row.method for row in one.rows if row.method != "rotation"], "they are measured once"
    assert not [row for run in runs[1:] for row in read_rows(run.results_file) if row.method != "rotation"]
    with monkeypatch.context() as patched:
        patched.setattr(Rotation, "forward", lambda *_: {"loss": torch.tensor(math.nan, requires_grad=True)})
        failed = compare(
            data, CompareConfig(("rotation", "simclr"), trainings=3), training, replace(FEW, protocols=("knn",))
        )
    assert [entry.state for entry in failed.entries] == ["failed", "done"]
    assert {row.method for row in failed.rows} == {"simclr", *baselines}, "what needs no training stays measured"
    with pytest.raises(SelfsightError, match="--trainings 0"):
        CompareConfig(trainings=0)


def words_of(comparison: Comparison) -> str:
    console = Console(width=60, record=True)
    print_comparison(comparison, console)
    return console.export_text()


@pytest.fixture(scope="module")
def compared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """Two methods, one that does not suit grey images, and a fine-tuning."""
    out = tmp_path_factory.mktemp("compared") / "out"
    evaluation = replace(FEW, protocols=("linear", "finetune"))
    return out, run(data, out, "rotation", "colorization", "simclr", evaluation=evaluation)


def test_each_method_has_its_results_and_the_baselines_are_measured_once(compared: tuple[Path, Comparison]) -> None:
    out, comparison = compared
    assert [(e.method, e.state) for e in comparison.entries] == [
        ("rotation", "done"),
        ("colorization", "skipped"),
        ("simclr", "done"),
    ]
    methods = [{row.method for row in read_rows(RunFolder(out / name).results_file)} for name in ("rotation", "simclr")]
    assert methods == [{"rotation", "pixels", "random", "scratch"}, {"simclr"}]
    assert len(comparison.rows) == 2 * (2 + 2) + 2 * 2 + 2
    for entry in (comparison.entries[0], comparison.entries[2]):
        assert entry.figures["epochs"] == 1
        assert entry.figures["images_per_second"] > 10
        assert entry.figures["peak_memory_bytes"] > 2**26
        assert entry.figures["rankme"] > 1
    configs = [RunFolder(out / name).config() for name in ("rotation", "simclr")]
    assert configs[0]["backbone"] == configs[1]["backbone"]


def test_one_page_shows_all_and_leads_to_each_report(compared: tuple[Path, Comparison]) -> None:
    out, _ = compared
    page = (out / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    others = {link for link in links if not link.startswith("data:image/")}
    assert others == {"./rotation/report.html", "./simclr/report.html"}
    assert all((out / link).exists() for link in others)
    assert "colorization learns by telling the colours" in page, "what was left out is named with its reason"
    assert "turned back as it answered" in page
    assert "positives" in page
    assert "training from scratch" in page
    assert re.search(
        r"is ahead in this one training of each(, not clearly of [\w, ]+)?\. With 3 labels a class, a linear probe",
        page,
    )
    with Image.open(out / "compare.png") as chart:
        assert chart.width > 500
    saved = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert saved["untrained"]["rankme"] > 1
    assert {(r["method"], r["protocol"], r["labels"]) for r in saved["rows"]} >= {("scratch", "finetune", 3)}


def test_the_table_is_whole_on_a_narrow_terminal(compared: tuple[Path, Comparison]) -> None:
    words = words_of(compared[1])
    assert "…" not in words
    assert "Memory" in words
    assert re.search(r"simclr .*\d+\.\d ± \d+\.\d.* GB", words)
    assert "colorization: skipped: colorization learns" in words


def test_a_second_call_trains_and_measures_nothing(
    compared: tuple[Path, Comparison], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = compared

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(api, "pretrain", fail)
    monkeypatch.setattr("selfsight.evaluate.curve.Task.score", fail)
    before = (out / "rotation" / "report.html").stat().st_mtime_ns
    again = run(data, out, "rotation", "colorization", "simclr")
    assert [e.figures for e in again.entries] == [e.figures for e in first.entries]
    assert {r.value for r in again.rows} <= {r.value for r in first.rows}
    assert (out / "rotation" / "report.html").stat().st_mtime_ns == before


def test_other_settings_or_data_are_refused(compared: tuple[Path, Comparison], data: Path, digits_file: Path) -> None:
    with pytest.raises(SelfsightError, match=r"--epochs 2: .*rotation was begun with 1"):
        run(data, compared[0], "rotation", epochs=2)
    with pytest.raises(SelfsightError, match=r"--seed 1: .*begun with 0"):
        run(data, compared[0], "rotation", seed=1)
    with pytest.raises(SelfsightError, match="holds a comparison on"):
        run(digits_file, compared[0], "rotation")


@pytest.mark.usefixtures("no_pages")
def test_distillation_is_compared_with_its_teacher(
    compared: tuple[Path, Comparison], data: Path, tmp_path: Path
) -> None:
    teacher = str(compared[0] / "rotation")
    training = Pretrain(out=tmp_path / "out", backbone="test_resnet", epochs=1, batch_size=40)
    found = compare(data, CompareConfig(("distill",), teacher), training, replace(FEW, baselines=False))
    assert [(entry.method, entry.state) for entry in found.entries] == [("distill", "done")]
    with pytest.raises(SelfsightError, match=r"--teacher other: .* has learned from .*rotation"):
        compare(data, CompareConfig(("distill",), "other"), training, FEW)


@pytest.mark.usefixtures("no_pages")
def test_methods_are_never_compared_on_other_images_of_one_name(data: Path, tmp_path: Path) -> None:
    again = tmp_path / "images.npz"
    again.write_bytes(data.read_bytes())
    run(again, tmp_path / "out", "rotation")
    with np.load(again) as file:
        parts = dict(file)
    np.savez(again, **parts | {"images": 255 - parts["images"]})
    with pytest.raises(SelfsightError, match="was trained on other images of"):
        run(again, tmp_path / "out", "rotation", "simclr")


@pytest.mark.usefixtures("no_pages")
def test_an_interrupted_comparison_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def interrupt(self: SimCLR, progress: float) -> None:
        steps.append(len(steps))
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SimCLR, "after_step", interrupt)
    with pytest.raises(SelfsightError, match="stopped in simclr; the same command goes on"):
        run(data, tmp_path / "out", "rotation", "simclr", "barlow_twins")
    assert [p.name for p in sorted((tmp_path / "out").iterdir()) if p.is_dir()] == ["rotation", "simclr"]
    rotation = (tmp_path / "out" / "rotation" / "backbone.safetensors").stat().st_mtime_ns
    comparison = run(data, tmp_path / "out", "rotation", "simclr", "barlow_twins")
    assert all(entry.state == "done" for entry in comparison.entries)
    assert len(steps) == 5, "of five steps an epoch the three that were done are not done again"
    assert (tmp_path / "out" / "rotation" / "backbone.safetensors").stat().st_mtime_ns == rotation


@pytest.mark.usefixtures("no_pages")
def test_a_method_that_fails_is_named_and_the_others_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Rotation, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"loss": self.head.weight.sum() * torch.nan}

    monkeypatch.setattr(Rotation, "forward", broken)
    comparison = run(data, tmp_path / "out", "rotation", "simclr")
    assert [e.state for e in comparison.entries] == ["failed", "done"]
    assert "the loss is nan" in comparison.entries[0].reason
    assert {row.method for row in comparison.rows} == {"simclr", "pixels", "random"}
    assert "rotation: failed: the loss is nan" in words_of(comparison)
    with pytest.raises(SelfsightError, match="no method came through; rotation: the loss is nan"):
        run(data, tmp_path / "alone", "rotation")


@pytest.mark.usefixtures("no_pages")
def test_a_bug_in_one_method_does_not_stop_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Rotation, batch: Batch, progress: float) -> dict[str, Tensor]:
        raise KeyError("chanse")

    monkeypatch.setattr(Rotation, "forward", broken)
    comparison = run(data, tmp_path / "out", "rotation", "simclr")
    assert [e.state for e in comparison.entries] == ["failed", "done"]
    assert comparison.entries[0].reason == "KeyError: 'chanse'"
    assert 'raise KeyError("chanse")' in capsys.readouterr().err, "the place of the bug"


@pytest.mark.usefixtures("no_pages")
def test_results_of_a_method_that_has_changed_are_not_shown_as_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data, tmp_path, "rotation")
    with monkeypatch.context() as patched:
        patched.setattr(Rotation, "optim", replace(Rotation.optim, lr=0.5))
        with pytest.raises(SelfsightError, match=r"--lr 0\.5: .*rotation was begun with"):
            run(data, tmp_path, "rotation")
    folder = RunFolder(tmp_path / "rotation")
    folder.write_config(folder.config() | {"source": "another"})
    with pytest.raises(SelfsightError, match=r"rotation has changed since; choose another folder"):
        run(data, tmp_path, "rotation")


def test_what_is_wrong_for_all_is_said_before_anything_is_trained(data: Path, tmp_path: Path, digits: Digits) -> None:
    out = tmp_path / "out"
    unlabeled = tmp_path / "unlabeled.npz"
    np.savez(unlabeled, images=digits[0][:50])
    with pytest.raises(SelfsightError, match="no labels"):
        run(unlabeled, out, "rotation")
    with pytest.raises(SelfsightError, match="--per-class 500"):
        run(data, out, "rotation", evaluation=replace(FEW, per_class=(500,)))
    with pytest.raises(SelfsightError, match="nosuch: no such method"):
        run(data, out, "rotation", "nosuch")
    with pytest.raises(SelfsightError, match="--devices"):
        compare(data, CompareConfig(("rotation",)), Pretrain(out=out, devices=2))
    with pytest.raises(SelfsightError, match="--methods: name at least one"):
        run(data, out)
    assert not out.exists()
