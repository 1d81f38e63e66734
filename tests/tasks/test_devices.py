"""Several processes learn from labels like one, training after training, and one of them writes."""

import json
import os
import socket
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfsight import backbones
from selfsight.errors import SelfsightError
from selfsight.run import RunFolder
from selfsight.tasks.classification import ClassificationConfig
from selfsight.tasks.curve import TrainConfig, train
from selfsight.tasks.learning import LearnConfig
from tests.processes import needs_two_devices, together


def learn_alone(data: str, out: Path, devices: int) -> bool:
    """Fine-tune a tiny network, then another with pseudo-labels; return whether this process led."""
    torch.manual_seed(0)
    net = backbones.create(backbones.plan("test_resnet", 16, 1, (0.3,), (0.38,)))
    learning = LearnConfig(devices=devices, min_steps=6, max_steps=6, batch_size=32, lr=1e-3, checks=2, validation=0.2)
    settings = ClassificationConfig(pseudo_labels=0.5)
    config = TrainConfig(labels=(0.1, 1.0), seeds=1)
    return train(net, data, config, settings, learning, method="simclr", run="run", out=out) is not None


def learn_as_torchrun_does(rank: int, data: str, out: Path, port: int) -> None:
    """Be one of two processes; write down what was said, and whether this one led."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    with (out.parent / f"said{rank}").open("w") as said, redirect_stderr(said):
        led = learn_alone(data, out, 2)
    (out.parent / f"led{rank}").write_text(str(led))


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.results_file.read_text().splitlines()]


@needs_two_devices
def test_two_processes_learn_like_one_training_after_training(digits_file: Path, tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path / "1"), RunFolder(tmp_path / "2")
    assert learn_alone(str(digits_file), one.path, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together(learn_as_torchrun_does, str(digits_file), two.path, port)
    assert [(tmp_path / f"led{rank}").read_text() for rank in (0, 1)] == ["True", "False"]
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert "[4/4]" in said[0]
    assert said[1] == "", "the helper is quiet"
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
