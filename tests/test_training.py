"""Pretraining: exact resume, many processes as one, budgets, clear errors."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from selfsight import methods, watch
from selfsight.backbones import create
from selfsight.data import open_images
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError, StoppedError
from selfsight.methods.simclr import SimCLR
from selfsight.optim import Optim
from selfsight.pretraining import pretrain
from selfsight.run import RunFolder
from selfsight.training import Pretrain, new_backbone, prepare, recipe
from tests import train_alone
from tests.processes import needs_two_devices

BASE = ["--batch-size", "64", "--backbone", "test_resnet"]
Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]


def arguments(data: Path, out: Path, *flags: object) -> list[str]:
    return [*map(str, (data, "--out", out, *flags))]


def command(data: Path, out: Path, *flags: object) -> list[str]:
    """A program of its own that pretrains, as a process that can be killed or that Lightning can start twice."""
    return [sys.executable, train_alone.__file__, *arguments(data, out, *flags)]


def environment() -> dict[str, str]:
    """As many threads as here, which is part of being bit-equal."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1"}


def train(data: object, out: Path, **changes: object) -> RunFolder:
    config = replace(Pretrain(out=out, epochs=1, batch_size=64, backbone="test_resnet"), **changes)  # type: ignore[arg-type]
    run = pretrain(data, "simclr", config)
    assert run is not None
    return run


@pytest.fixture
def few_file(tmp_path: Path, digits: Digits) -> Path:
    """256 digits without labels, of which no probes are made, as a file that other processes read."""
    np.savez(tmp_path / "few.npz", images=digits[0][:256])
    return tmp_path / "few.npz"


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd", "lars"])
def test_training_is_repeatable_and_lowers_the_loss(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr(watch, "_health", lambda training: {})  # takes longer than all else here
    rates = {"adamw": 2e-3, "muon": 2e-3, "sgd": 0.2, "lars": 1.0}
    runs = [
        train(digits[0][:128], tmp_path / name, epochs=epochs, optimizer=optimizer, lr=rates[optimizer])
        for name, epochs in (("a", 2), ("b", 2), ("long", 12))
    ]
    weights = [load_file(run.weights_file) for run in runs]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    losses = [float(row["loss"]) for row in runs[2].metrics() if row["loss"]]
    assert losses[-1] < losses[0] - 0.2


def test_a_killed_run_resumes_to_the_same_weights(few_file: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle and --resume the weights are bit-equal to those of an uninterrupted run."""
    flags = [*BASE, "--epochs", 15, "--checkpoint-minutes", 0.002, "--ema", 0.9, "--accumulate", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_alone.train(arguments(few_file, whole, *flags))
    job = subprocess.Popen(command(few_file, killed, *flags), env=environment())
    checkpoint = RunFolder(killed).checkpoint_file
    deadline = time.monotonic() + 60
    while not (checkpoint.exists() and len(RunFolder(killed).metrics()) >= 2):
        assert job.poll() is None, "it finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not RunFolder(killed).weights_file.exists()
    train_alone.train(arguments(few_file, killed, "--resume"))  # the other flags are in the run's config
    a, b = (load_file(RunFolder(p).weights_file) for p in (whole, killed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not checkpoint.exists(), "a finished run leaves none"
    steps = [[row["step"] for row in RunFolder(p).metrics()] for p in (whole, killed)]
    assert steps[0] == steps[1], "the curve has each step once"


def test_a_signal_leaves_a_resumable_run(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster sends before it takes the machine away."""
    out = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError, match=r"stopped at 12%; continue with --resume"):
            train(digits[0][:128], out.path, epochs=4)
    assert out.checkpoint_file.exists()
    train(digits[0][:128], out.path, epochs=4, resume=True)
    assert out.weights_file.exists()


@needs_two_devices
def test_two_processes_train_like_one(few_file: Path, tmp_path: Path) -> None:
    """Same global batches and views, gathered negatives, synchronized BatchNorm: the same losses.

    Gradients are compared in float64 in test_nn; here, in float32, rounding grows from step to step.
    """
    flags = [*BASE, "--epochs", 1, "--precision", "float32", "--optimizer", "sgd", "--lr", 0.05]
    weights, losses = [], []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        if devices == 1:
            train_alone.train(arguments(few_file, out, *flags))
        else:
            job = command(few_file, out, *flags, "--devices", devices)
            done = subprocess.run(job, check=True, env=environment(), cwd=tmp_path, capture_output=True, text=True)
            assert sorted(done.stdout.splitlines()) == ["(0, 1) helps", "(0, 1) leads"], "what follows is for one alone"
            assert "still connected" not in done.stderr, "a process that ends while gloo's threads run can be aborted"
        weights.append(load_file(RunFolder(out).weights_file))
        with RunFolder(out).metrics_file.open() as f:
            losses.append([float(row["loss"]) for row in csv.DictReader(f) if row["loss"]])
    assert len(losses[0]) == len(losses[1]) >= 3
    assert np.allclose(losses[0][:2], losses[1][:2], atol=1e-4)
    assert np.allclose(losses[0], losses[1], atol=0.01)
    for k, v in weights[0].items():
        assert torch.allclose(v.float(), weights[1][k].float(), atol=5e-3), k


def test_an_average_of_a_short_training_is_not_of_its_beginning(digits: Digits, tmp_path: Path) -> None:
    """A plain momentum of 0.999 would keep 99 % of the first weights in these eight steps."""
    kept = [train(digits[0][:512], tmp_path / str(ema), ema=ema).load_backbone() for ema in (0.0, 0.999)]
    for one, other in zip(*(backbone.parameters() for backbone in kept), strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 5), (2, 6), (8, 8)])
def test_no_gradient_is_thrown_away_at_the_end(digits: Digits, tmp_path: Path, accumulate: int, steps: int) -> None:
    run = train(digits[0][:320], tmp_path / "run", accumulate=accumulate)
    assert run.config()["measured"]["steps"] == steps


def test_the_gradients_norm_is_limited_in_bfloat16_too(digits: Digits, tmp_path: Path) -> None:
    weights = []
    for lr in (0.1, 0.2):
        changes = {"clip": 1e-9, "optimizer": "sgd", "lr": lr, "weight_decay": 0.0, "precision": "bf16"}
        backbone = train(digits[0][:128], tmp_path / str(lr), **changes).load_backbone()
        weights.append(dict(backbone.named_parameters()))
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name


def test_minutes_are_kept(digits: Digits, tmp_path: Path) -> None:
    start = time.monotonic()
    run = train(digits[0], tmp_path / "run", epochs=None, minutes=0.1)
    last = run.metrics()[-1]
    assert 5.9 <= float(last["seconds"]) < 6.6, "ends on time within 10 %"
    assert float(last["lr"]) < 1e-4, "the schedule came to its end"
    assert time.monotonic() - start < 20


def test_compiling_takes_nothing_from_a_budget_of_minutes(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: None)
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    forward, seen = SimCLR.forward, list[float]()

    def slow_at_first(self: SimCLR, batch: Batch, progress: float) -> dict[str, Tensor]:
        time.sleep(0 if seen else 3)
        seen.append(progress)
        return forward(self, batch, progress)

    monkeypatch.setattr(SimCLR, "forward", slow_at_first)
    train(digits[0][:320], tmp_path / "run", epochs=None, minutes=0.05, compile=True)
    assert max(seen[:2]) < 0.01, "the warm-up is still to come"
    assert len(seen) > 3


def test_a_loss_that_is_not_finite_stops_with_a_remedy(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match="lower --lr"):
        train(digits[0][:256], tmp_path / "run", epochs=20, optimizer="sgd", lr=1e12, warmup=0.0)


@pytest.mark.parametrize(
    ("asked", "decay"),
    [
        ({}, (0.01, 0.1)),
        ({"weight_decay": 0.3}, (0.3, None)),
        ({"weight_decay": 0.04, "final_weight_decay": 0.4}, (0.04, 0.4)),
        ({"final_weight_decay": 0.2}, (0.01, 0.2)),
    ],
)
def test_weight_decay_rises_as_asked(asked: dict[str, float], decay: tuple[float, float | None]) -> None:
    found = recipe(Optim("muon", weight_decay=0.01, final_weight_decay=0.1), Pretrain(**asked))  # type: ignore[arg-type]
    assert (found.weight_decay, found.final_weight_decay) == decay


def test_starts_from_weights_of_a_file(digits: Digits, tmp_path: Path) -> None:
    first = train(digits[0][:128], tmp_path / "first")
    again = train(digits[0][:128], tmp_path / "again", pretrained=str(first.weights_file), lr=1e-12, image_size=32)
    a, b = load_file(first.weights_file), load_file(again.weights_file)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a if k.endswith("conv1.weight"))


def test_timms_weights_see_colours_as_they_were_trained(
    photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsight.backbones.load_pretrained", lambda spec, _source: create(spec))  # not to be had here
    found = {}
    for source in ("timm", None):
        config = Pretrain(backbone="test_vit", pretrained=source, out=tmp_path / str(source))
        images = open_images(np.stack([photo[:32, :32]] * 8), image_size=32)
        found[source] = new_backbone(methods.get("simclr"), config, images, 32).spec.mean
    assert found["timm"] == (0.5, 0.5, 0.5), "of this network, not ImageNet's"
    assert found[None] == pytest.approx((photo[:32, :32] / 255).mean((0, 1)), abs=1e-3), "of the data"


def test_starts_from_another_run(digits: Digits, tmp_path: Path) -> None:
    first = train(digits[0][:128], tmp_path / "first")
    again = train(digits[0][:128], tmp_path / "again", backbone="auto", pretrained=str(first.path), lr=1e-12)
    a, b = first.load_backbone(), again.load_backbone()
    assert a.spec == b.spec, "the stem for small images is kept"
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-4) for k, v in a.named_parameters())
    few: dict[str, object] = {"batch_size": 16, "lr": 1e-12}
    vit = train(digits[0][:32], tmp_path / "vit", backbone="test_vit", image_size=16, **few)
    few |= {"backbone": "auto", "pretrained": str(vit.path), "image_size": 32}
    larger = train(digits[0][:32], tmp_path / "larger", **few)
    places = [r.load_backbone().state_dict()["model.pos_embed"].shape[1] for r in (vit, larger)]
    assert places[0] < places[1], "a ViT's places are resampled"
    with pytest.raises(SelfsightError, match=r"--patch-size 8: .*vit has 2"):
        train(digits[0][:128], tmp_path / "other", backbone="auto", pretrained=str(vit.path), patch_size=8)
    with pytest.raises(SelfsightError, match=r"first: is test_resnet for 1 channels"):
        train(digits[0][:128], tmp_path / "other", backbone="resnet18", pretrained=str(first.path))


def test_a_vit_has_patches_of_the_size_asked_for(digits: Digits, tmp_path: Path) -> None:
    vit = train(digits[0][:64], tmp_path / "vit", backbone="test_vit", patch_size=4).load_backbone()
    assert vit.patches() == 16
    assert vit.state_dict()["model.patch_embed.proj.weight"].shape[-2:] == (4, 4)


@pytest.mark.parametrize("name", ["resnet10t", "test_resnet"])
def test_a_resnet_has_the_stem_of_the_literature_if_asked(digits: Digits, tmp_path: Path, name: str) -> None:
    usual, asked = (
        train(digits[0][:16], tmp_path / str(stride), backbone=name, stem_stride=stride, batch_size=16).load_backbone()
        for stride in (2, 1)
    )
    assert asked.reduction == usual.reduction // 2
    for backbone in (usual, asked):
        assert backbone.pyramid(torch.zeros(1, 1, 32, 32))[-1].shape[-1] == 32 // backbone.reduction


def test_images_have_the_channels_asked_for(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    run = train(np.stack([photo[:32, :32]] * 8), tmp_path / "grey", batch_size=4, channels=1)
    assert run.load_backbone().spec.channels == 1


def test_a_fraction_of_the_training_images_is_the_same_for_a_seed(digits: Digits) -> None:
    images = open_images(digits[0], image_size=16)
    data = replace(images, split=np.where(np.arange(len(images)) % 5, "train", "test"))
    whole, facts = prepare(data, Pretrain())
    some, fewer = prepare(data, Pretrain(fraction=0.25))
    assert fewer.images == round(facts.images / 4)
    assert fewer.rows == len(whole), "rows keep their numbers"
    assert set(some.rows("train")) < set(whole.rows("train"))
    assert np.array_equal(some.rows("test"), whole.rows("test"))
    assert np.array_equal(some.rows("train"), prepare(data, Pretrain(fraction=0.25))[0].rows("train"))
    assert not np.array_equal(some.rows("train"), prepare(data, Pretrain(fraction=0.25, seed=1))[0].rows("train"))
    with pytest.raises(SelfsightError, match=r"--fraction 1\.5: must be above 0 and at most 1"):
        Pretrain(fraction=1.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU views may be larger")
@pytest.mark.parametrize(("side", "size"), [(8, 16), (16, 16), (28, 32), (120, 96)])
def test_views_have_the_images_size_in_steps_that_a_network_halves(tmp_path: Path, side: int, size: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (16, side, side), dtype=np.uint8)
    assert train(images, tmp_path / "run", batch_size=8).config()["chosen"]["image_size"] == size


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_on_a_cpu_vits_and_decoders_train_without_fused_attention(
    digits: Digits, tmp_path: Path, fused: list[bool]
) -> None:
    pretrain(digits[0][:64], "mae", Pretrain(out=tmp_path / "run", epochs=1, batch_size=32, backbone="test_vit"))
    assert not any(fused), "none with a gradient: the check of the network's size has none"
