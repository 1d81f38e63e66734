"""Several processes learn from labels like one, training after training, and one of them writes."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfsight.errors import SelfsightError
from selfsight.run import RunFolder
from selfsight.tasks.learning import LearnConfig
from tests.processes import needs_two_devices
from tests.tasks import learn_alone


def run(folder: Path, data: Path) -> tuple[str, RunFolder]:
    """Train with two processes; return what they printed."""
    out = folder / "2"
    job = subprocess.run(
        [sys.executable, *map(str, (learn_alone.__file__, data, out, 2))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert job.returncode == 0, job.stderr
    return job.stdout + job.stderr, RunFolder(out)


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.results_file.read_text().splitlines()]


@needs_two_devices
def test_two_processes_learn_like_one_training_after_training(digits_file: Path, tmp_path: Path) -> None:
    one = RunFolder(tmp_path / "1")
    learn_alone.learn(str(digits_file), one.path, 1)
    words, two = run(tmp_path, digits_file)
    assert Counter(words.split())["led"] == 1
    assert words.count("[1/4]") == 1, "the helper is quiet"
    ours, theirs = rows(two), rows(one)
    named = "method", "protocol", "labels", "metric"
    assert [[r[k] for k in named] for r in ours] == [[r[k] for k in named] for r in theirs], "each is tested once"
    assert {(r["protocol"], r["labels"]) for r in ours if r["method"] == "simclr"} == {
        (protocol, labels) for protocol in ("finetune", "pseudo") for labels in (0.1, 1.0)
    }
    for mine, other in zip(ours, theirs, strict=True):
        if mine["metric"] == "accuracy" and mine["protocol"] == "finetune":
            assert mine["value"] == pytest.approx(other["value"], abs=0.03), mine
    weights = [load_file(folder.method_file) for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight.float(), weights[1][name].float(), atol=0.02), name
    kept = sorted(p.relative_to(two.path) for p in two.path.rglob("*") if p.is_file())
    assert kept == sorted(p.relative_to(one.path) for p in one.path.rglob("*") if p.is_file())


def test_each_process_must_have_the_same_share_of_a_batch() -> None:
    with pytest.raises(SelfsightError, match="--batch-size 8: is no multiple of --devices 3"):
        LearnConfig(batch_size=8, devices=3)
