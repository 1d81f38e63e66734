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

SCRIPT = """
import sys
from pathlib import Path
import torch
from selfsight import backbones
from selfsight.tasks.classification import ClassificationConfig
from selfsight.tasks.curve import TrainConfig, train
from selfsight.tasks.learning import LearnConfig
data, out, devices, pseudo = sys.argv[1:]
torch.manual_seed(0)
net = backbones.create(backbones.plan("test_resnet", 16, 1, (0.3,), (0.38,)))
learning = LearnConfig(
    devices=int(devices), min_steps=12, max_steps=12, batch_size=32, lr=1e-3, checks=2, validation=0.2
)
settings = ClassificationConfig(pseudo_labels=float(pseudo) or None)
config = TrainConfig(labels=(0.1, 1.0), seeds=1)
trained = train(net, data, config, settings, learning, method="simclr", run="run", out=Path(out))
print("helped" if trained is None else "led")
"""


def run(folder: Path, data: Path, devices: int, pseudo: float = 0.0) -> tuple[str, RunFolder]:
    """Train in a program of its own, which Lightning can start twice; return what its processes printed."""
    script, out = folder / "train.py", folder / str(devices)
    script.write_text(SCRIPT)
    job = subprocess.run(
        [sys.executable, *map(str, (script, data, out, devices, pseudo))],
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


def test_two_processes_learn_like_one_in_four_trainings_in_a_row(digits_file: Path, tmp_path: Path) -> None:
    (_, one), (words, two) = run(tmp_path, digits_file, 1), run(tmp_path, digits_file, 2)
    assert Counter(words.split())["led"] == 1
    assert words.count("[1/4]") == 1, "the helper is quiet"
    ours, theirs = rows(two), rows(one)
    keys = [(r["method"], r["labels"], r["metric"]) for r in ours]
    assert keys == [(r["method"], r["labels"], r["metric"]) for r in theirs], "each training is tested once"
    for mine, other in zip(ours, theirs, strict=True):
        if mine["metric"] == "accuracy":
            assert mine["value"] == pytest.approx(other["value"], abs=0.03), mine
    weights = [load_file(folder.method_file) for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight.float(), weights[1][name].float(), atol=0.02), name
    kept = sorted(p.relative_to(two.path) for p in two.path.rglob("*") if p.is_file())
    assert kept == sorted(p.relative_to(one.path) for p in one.path.rglob("*") if p.is_file())


def test_two_processes_agree_on_pseudo_labels(digits_file: Path, tmp_path: Path) -> None:
    words, folder = run(tmp_path, digits_file, 2, pseudo=0.5)
    assert Counter(words.split())["led"] == 1
    assert {(r["protocol"], r["labels"]) for r in rows(folder) if r["method"] == "simclr"} == {
        (protocol, labels) for protocol in ("finetune", "pseudo") for labels in (0.1, 1.0)
    }


def test_each_process_must_have_the_same_share_of_a_batch() -> None:
    with pytest.raises(SelfsightError, match="--batch-size 8: is no multiple of --devices 3"):
        LearnConfig(batch_size=8, devices=3)
