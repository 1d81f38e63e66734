"""What is written while a method trains."""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file

from selfsight import watch
from selfsight.pretraining import pretrain
from selfsight.training import Pretrain
from tests.test_training import Digits


@pytest.mark.parametrize(("method", "beside"), [("simclr", None), ("byol", "teacher"), ("dino", "student")])
@pytest.mark.usefixtures("few_checks")
def test_labels_are_asked_of_the_embeddings_and_change_nothing(
    digits: Digits, tmp_path: Path, method: str, beside: str | None
) -> None:
    images, labels = digits[0][:512], digits[1][:512]
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    np.savez(tmp_path / "bare.npz", images=images)
    runs = []
    for name in ("labelled", "bare"):
        config = Pretrain(out=tmp_path / name, epochs=1, batch_size=64, backbone="test_resnet")
        run = pretrain(tmp_path / f"{name}.npz", method, config)
        assert run is not None
        runs.append(run)
    last, bare = (run.metrics()[-1] for run in runs)
    assert float(last["projected"]) > 5, "the head's outputs have not collapsed"
    for kind in ("knn", "linear"):
        assert 0.3 < float(last[kind]) <= 1, "ten classes: chance is 0.1"
        assert kind not in bare
        for other in ("teacher", "student"):
            assert (float(last.get(f"{kind}_{other}") or 0) > 0.3) == (other == beside)
    weights, others = (load_file(run.weights_file) for run in runs)
    assert all(bool((weights[key] == others[key]).all()) for key in weights)


class FakeWandb(Logger):
    """Stands for Lightning's logger, which needs the package."""

    def __init__(self, **asked: object) -> None:
        super().__init__()
        self.asked, self.rows = asked, 0
        self.told: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.told = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows += 1


@pytest.mark.parametrize("begun", [False, True])
def test_loggers_are_told_the_settings_and_each_run_is_its_own(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """In one that the program began, as a W&B sweep does, all is written there, and it is not ended."""
    made: list[FakeWandb] = []
    ended: list[str] = []

    def make(**asked: object) -> FakeWandb:
        made.append(FakeWandb(**asked))
        return made[-1]

    package = SimpleNamespace(run=object() if begun else None, finish=lambda: ended.append("run"))
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(watch, "WandbLogger", make)
    monkeypatch.setenv("WANDB_PROJECT", "moths")
    out = tmp_path / "run"
    run = pretrain(
        digits[0][:64], "simclr", Pretrain(out=out, epochs=1, batch_size=32, backbone="test_resnet", wandb=True)
    )
    assert run is not None
    (logger,) = made
    assert logger.asked == {"project": "moths", "name": "run", "save_dir": out, "id": run.config()["id"]}
    assert logger.told["method"] == "simclr"
    assert logger.told["optim"]["lr"] == run.config()["optim"]["lr"]
    assert logger.rows == len(run.metrics())
    assert ended == ([] if begun else ["run"])


@pytest.mark.parametrize(("seconds", "count"), [(1, 10), (60, 2)])
def test_health_that_takes_long_is_measured_less_often(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, count: int
) -> None:
    np.savez(tmp_path / "bare.npz", images=digits[0][:512])
    clock = itertools.count(step=seconds)  # each look at it is so much later
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = Pretrain(out=tmp_path / "run", epochs=1, batch_size=32, backbone="test_resnet", checkpoint_minutes=1e6)
    run = pretrain(tmp_path / "bare.npz", "simclr", config)
    assert run is not None
    measured = [row["step"] for row in run.metrics() if row.get("rankme")]
    assert len(measured) == count
    assert measured[-1] == run.metrics()[-1]["step"]
