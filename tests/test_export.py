import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from selfsight import backbones, export
from selfsight.backbones import Backbone
from selfsight.errors import SelfsightError
from selfsight.run import RunFolder


def finished(
    path: Path, name: str, size: int, channels: int = 3, mean_tokens: bool = False, stride: int = 2
) -> tuple[RunFolder, Backbone]:
    """Return a run whose weights are random, with BatchNorm statistics as after training."""
    spec = backbones.plan(name, size, channels, (0.4,) * channels, (0.2,) * channels, mean_tokens=mean_tokens)
    torch.manual_seed(0)
    backbone = backbones.create(spec if stride == 2 else backbones.with_stem(spec, stride, 1))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    run = RunFolder(path)
    run.write_config({"method": "simclr"})
    run.save_backbone(backbone)
    return run, backbone.eval()


@pytest.mark.parametrize(
    ("name", "size", "channels", "mean_tokens", "stride"),
    [
        ("resnet18", 28, 1, False, 2),
        ("resnet18", 64, 3, False, 2),
        ("resnet18", 96, 3, False, 2),
        ("resnet10t", 32, 3, False, 2),
        ("resnet18", 32, 3, False, 1),
        ("resnet10t", 32, 3, False, 1),
        ("vit_tiny_patch16_224", 32, 3, False, 2),
        ("vit_tiny_patch16_224", 32, 3, True, 2),
    ],
)
def test_timm_loads_the_exported_weights_and_answers_the_same(
    tmp_path: Path, name: str, size: int, channels: int, mean_tokens: bool, stride: int
) -> None:
    run, backbone = finished(tmp_path / "run", name, size, channels, mean_tokens, stride)
    file = export.export(run, "timm")
    about = json.loads(file.with_suffix(".json").read_text())
    model: Any = timm.create_model(about["architecture"], **about["arguments"])
    model.load_state_dict(load_file(file), strict=True)
    for edit in about["edits"]:
        exec(edit, {"model": model, "torch": torch})
    mean, std = (torch.tensor(about[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    x = torch.rand(2, channels, about["image_size"], about["image_size"])
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()((x - mean) / std), backbone(x), atol=1e-5, rtol=0)


def test_the_python_that_comes_with_a_timm_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, backbone = finished(tmp_path, "resnet18", 32)
    about = json.loads(export.export(run, "timm").with_suffix(".json").read_text())
    monkeypatch.chdir(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    names: dict[str, Any] = {"images": x, "mean": backbone.mean, "std": backbone.std}
    with torch.inference_mode():
        exec("\n".join(about["python"]), names)
        torch.testing.assert_close(names["features"], backbone(x), atol=1e-5, rtol=0)


def test_torchscript_answers_the_same_at_any_batch_size(tmp_path: Path) -> None:
    run, backbone = finished(tmp_path, "resnet10t", 32)
    file = export.export(run, "torchscript")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit")
        model = torch.jit.load(file)
    for n in (1, 5):
        x = torch.rand(n, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(model(x), backbone(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "channels"), [("resnet10t", 1), ("vit_tiny_patch16_224", 5)])
def test_onnx_answers_the_same_at_any_batch_size(tmp_path: Path, name: str, channels: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, backbone = finished(tmp_path, name, 32, channels)
    out = tmp_path / "elsewhere" / "model.onnx"
    session = onnxruntime.InferenceSession(export.export(run, "onnx", out), providers=["CPUExecutionProvider"])
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.onnx"]
    for n in (1, 5):
        x = torch.rand(n, channels, 32, 32)
        (answer,) = session.run(["features"], {"images": x.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(answer, backbone(x).numpy(), atol=1e-4)


@pytest.mark.parametrize("form", ["timm", "torchscript"])
def test_a_file_that_answers_differently_is_not_written(
    form: export.Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished(tmp_path, "resnet10t", 32)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(SelfsightError, match="differ"):
        export.export(run, form)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.safetensors", "config.json"]


def test_a_wrong_suffix_and_an_unfinished_run_are_said(tmp_path: Path) -> None:
    run, _ = finished(tmp_path, "resnet10t", 32)
    with pytest.raises(SelfsightError, match=r"model\.bin: the onnx format is a \.onnx file"):
        export.export(run, "onnx", tmp_path / "model.bin")
    run.weights_file.unlink()
    with pytest.raises(SelfsightError, match="not finished"):
        export.export(run, "torchscript")
