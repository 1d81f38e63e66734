"""Checkpoints of other libraries give the features that their networks gave, and nothing in them is executed."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from selfsight import cli, load
from selfsight.backbones import IMAGENET_MEAN, IMAGENET_STD, create, plan, with_weights
from selfsight.convert import convert
from selfsight.errors import SelfsightError

SIZE = 32


class Settings:
    """What another library pickles beside the weights: a class that is not here, and one that would do harm."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def a_network(kernel: int = 7, stride: int = 2, padding: int = 3) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model("resnet18", num_classes=0)
    if kernel == 3:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, stride, padding, bias=False), nn.Identity()
    return model.eval()


def normalized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def the_features(checkpoint: Path, out: Path, x: Tensor, backbone: str = "resnet18") -> Tensor:
    run = convert(checkpoint, out, backbone, SIZE, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        features: Tensor = run.load_backbone()(x)
    return features


@pytest.mark.parametrize(("style", "kernel", "padding"), [("solo", 7, 3), ("solo", 3, 2), ("lightly", 3, 1)])
def test_a_checkpoint_gives_the_features_of_its_network(tmp_path: Path, style: str, kernel: int, padding: int) -> None:
    model = a_network(kernel, 2 if kernel == 7 else 1, padding)
    names = list(dict(model.named_children()))  # conv1, bn1, act1, maxpool, layer1 …
    state = {}
    for name, value in model.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"backbone.{name}" if style == "solo" else f"backbone.{names.index(first)}.{rest}"] = value
        state[f"momentum_backbone.{name}"] = torch.zeros_like(value)
    state["classifier.weight" if style == "solo" else "projection_head.layers.0.weight"] = torch.zeros(10, 512)
    file, harm = tmp_path / "last.ckpt", tmp_path / "harm"
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": Settings(f"touch {harm}")}, file)
    x = torch.rand(3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model(normalized(x))
    assert torch.allclose(the_features(file, tmp_path / "run", x), expected, atol=1e-5)
    assert not harm.exists(), "what the file said was run"


def test_safetensors_and_a_vit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = plan("test_vit", SIZE, 3, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)
    model = create(spec).eval()
    save_file({f"student.{k}": v.contiguous() for k, v in model.model.state_dict().items()}, tmp_path / "w.safetensors")
    run = convert(tmp_path / "w.safetensors", tmp_path / "run", "test_vit", SIZE, IMAGENET_MEAN, IMAGENET_STD)
    x = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(run.load_backbone()(x), model(x))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_vit_of_other_patches_and_heads(tmp_path: Path, pool: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As solo-learn's on CIFAR; without --heads the tensors would fit, and the features be others."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 0, "img_size": SIZE, "patch_size": 4, "num_heads": 12}
    model = timm.create_model("vit_tiny_patch16_224", global_pool=pool, fc_norm=False, **settings).eval()
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()} | {"decoder.weight": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    x = torch.rand(2, 3, SIZE, SIZE)
    asked = tmp_path / "last.ckpt", "vit_tiny_patch16_224", SIZE, IMAGENET_MEAN, IMAGENET_STD
    run = convert(asked[0], tmp_path / "run", *asked[1:], heads=12, mean_tokens=pool == "avg")
    with torch.no_grad():
        expected = model(normalized(x))
        assert torch.allclose(run.load_backbone()(x), expected, atol=1e-5)
        plain = convert(asked[0], tmp_path / "plain", *asked[1:], mean_tokens=pool == "avg")
        assert not torch.allclose(plain.load_backbone()(x), expected, atol=1e-4)
    assert "have --heads 12" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SelfsightError, match="--heads 5: does not divide the 192"):
        convert(asked[0], tmp_path / "odd", *asked[1:], heads=5)
    with pytest.raises(SelfsightError, match="resnet18 is not a ViT"):
        convert(asked[0], tmp_path / "odd", "resnet18", *asked[2:], mean_tokens=True)
    with pytest.raises(SelfsightError, match="--image-size 30: its patches of 4 pixels don't divide it"):
        convert(asked[0], tmp_path / "odd", asked[1], 30, *asked[3:])


def test_an_efficientnet_with_efficientnet_pytorchs_names(tmp_path: Path) -> None:
    """Both build a block's parts in the same order, and number them otherwise."""
    torch.manual_seed(0)
    model = create(plan("tf_efficientnet_b0", SIZE, 3, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)).eval()
    parts = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"]
    others = {"net._fc.weight": torch.zeros(1000, 1280), "net.step": torch.zeros(1), "net._blocks.x.y": torch.zeros(1)}
    state, blocks = dict(others), [b for stage in model.model.blocks for b in stage]
    outer = [("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2")]
    modules = [(name, model.model.get_submodule(own)) for name, own in outer]
    for number, block in enumerate(blocks):
        leaves = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
        names = parts[-len(leaves) :]  # the first block widens nothing
        modules += [(f"_blocks.{number}.{name}", leaf) for name, leaf in zip(names, leaves, strict=True)]
    for name, module in modules:
        state |= {f"net.{name}.{key}": torch.rand_like(value.float()) for key, value in module.state_dict().items()}
        module.load_state_dict({key: state[f"net.{name}.{key}"] for key in module.state_dict()})
    torch.save(state, tmp_path / "b0.pth")
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model.model(normalized(x))
    assert torch.equal(the_features(tmp_path / "b0.pth", tmp_path / "run", x, "tf_efficientnet_b0"), expected)


def test_nothing_of_it_stays_random(tmp_path: Path) -> None:
    """A ViT's places are resampled to another size; a stem of other channels is an error, though all else fits."""
    torch.manual_seed(0)
    model = create(plan("test_vit", 2 * SIZE, 3, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)).eval()
    save_file({k: v.contiguous() for k, v in model.model.state_dict().items()}, tmp_path / "w.safetensors")
    run = convert(tmp_path / "w.safetensors", tmp_path / "run", "test_vit", SIZE, IMAGENET_MEAN, IMAGENET_STD)
    small = plan("test_vit", SIZE, 3, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)
    expected = with_weights(small, model.model.state_dict(), "").eval()
    x = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(run.load_backbone()(x), expected(x))
    with pytest.raises(SelfsightError, match=r"patch_embed.proj.weight \[64, 1, .*is \[64, 3, .*there"):
        convert(tmp_path / "w.safetensors", tmp_path / "grey", "test_vit", 2 * SIZE, (0.5,), (0.5,))
    places = model.model.state_dict() | {"pos_embed": torch.zeros(1, 8, 64)}
    save_file({k: v.contiguous() for k, v in places.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(SelfsightError, match="doesn't fit test_vit"):
        convert(tmp_path / "odd.safetensors", tmp_path / "odd", "test_vit", SIZE, IMAGENET_MEAN, IMAGENET_STD)
    resnet = create(plan("test_resnet", SIZE, 3, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)).model
    save_file({k: v.detach().contiguous() for k, v in resnet.named_parameters()}, tmp_path / "half.safetensors")
    with pytest.raises(SelfsightError, match=r"running_mean .* is not"):
        convert(tmp_path / "half.safetensors", tmp_path / "half", "test_resnet", SIZE, IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(SelfsightError, match="is no file"):
        convert(tmp_path, tmp_path / "folder", "test_vit", SIZE, IMAGENET_MEAN, IMAGENET_STD)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "part.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, out, words in (
        ("part", "a", r"1 of the \d+ tensors of --backbone resnet18 are in it; bn1.weight \[64\] is not"),
        ("text", "b", "not a checkpoint that can be read"),
        ("list", "c", "holds no named tensors"),
        ("none", "d", "no such file"),
        ("part", "full", "is not empty"),
    ):
        with pytest.raises(SelfsightError, match=words):
            convert(tmp_path / f"{name}.ckpt", tmp_path / out, "resnet18", SIZE, IMAGENET_MEAN, IMAGENET_STD)


def test_a_converted_run_is_taken_by_the_other_verbs(
    tmp_path: Path,
    digits: tuple[NDArray[np.uint8], NDArray[np.int64]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is evaluated and drawn; what needs its pretext task or its own images is left out, or asked for in words."""
    model = create(plan("test_resnet", SIZE, 1, (0.3,), (0.3,), pretrained=True))
    checkpoint, folder, data = tmp_path / "w.safetensors", tmp_path / "run", tmp_path / "digits.npz"
    np.savez(data, images=digits[0][:200], labels=digits[1][:200])
    save_file({k: v.contiguous() for k, v in model.model.state_dict().items()}, checkpoint)
    convert(checkpoint, folder, "test_resnet", SIZE, (0.3,), (0.3,))

    def selfsight(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["selfsight", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    flags = ["--protocols", "knn", "--per-class", 5, "--seeds", 1, "--no-baselines", "--json"]
    found = json.loads(selfsight("evaluate", folder, data, *flags))
    assert found["rows"][0]["method"] == "converted"
    page = (folder / "report.html").read_text()
    assert f"The weights of {checkpoint}" in page
    assert "<h1>w.safetensors, converted</h1>" in page
    assert f"the task's own pictures, is of {data}" in page
    shown = json.loads(selfsight("show", folder, data, "--images", 2, "--json"))["pictures"]
    assert len(shown) == 1, "only what the backbone looks at"
    with pytest.raises(SelfsightError, match="the images of a converted run are not known"):
        load(folder).report()
