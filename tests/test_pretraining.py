"""The run around the learning: its folder, what is written there, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight import backbones, pretraining
from selfsight.errors import SelfsightError
from selfsight.methods.simclr import SimCLR
from selfsight.pretraining import pretrain
from selfsight.run import RunFolder
from selfsight.training import Pretrain, Trainee, fit
from tests.test_training import Digits, train


def test_leaves_a_run_that_loads(digits: Digits, tmp_path: Path) -> None:
    run = train(digits[0][:256], tmp_path / "run", epochs=2)
    x = torch.rand(2, 1, 16, 16)
    assert run.load_backbone()(x).shape == (2, 96)
    rows = run.metrics()
    assert int(float(rows[-1]["step"])) == 8
    assert float(rows[-1]["rankme"]) > 1
    assert rows[-1]["chance"] == f"{np.log(127):.6g}"
    assert run.config()["chosen"]["batch_size"] == 64
    measured = run.config()["measured"]
    assert (measured["steps"], measured["epochs"]) == (8, 2)
    assert measured["images_per_second"] == pytest.approx(8 * 64 / measured["seconds"])
    assert 2**26 < measured["peak_memory_bytes"] < 2**36
    assert not list(run.path.glob(".*")), "no temporary files stay"


def test_uses_only_the_train_part(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "split.npz"
    split = np.array(["train"] * 128 + ["test"] * 72)
    np.savez(path, images=digits[0][:200], labels=digits[1][:200], split=split)
    assert train(path, tmp_path / "run").config()["images"] == 128


def test_refuses_to_overwrite_a_run(digits: Digits, tmp_path: Path) -> None:
    train(digits[0][:64], tmp_path / "run", batch_size=32)
    with pytest.raises(SelfsightError, match="is finished"):
        train(digits[0][:64], tmp_path / "run")


def test_a_file_that_is_damaged_meanwhile_is_listed(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(digits[0][:64]):
        Image.fromarray(image).save(folder / f"{i}.png")

    def damage_and_fit(module: Trainee, device: torch.device) -> None:
        (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])
        fit(module, device)

    monkeypatch.setattr(pretraining, "fit", damage_and_fit)
    run = train(folder, tmp_path / "run", batch_size=32, cache=False)
    assert [line.split(",")[0] for line in run.skipped_file.read_text().splitlines()] == ["file", "5.png"]
    assert run.config()["skipped"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 1.0}, "--minutes and --epochs"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"backbone": "resnet1000"}, "--backbone resnet1000"),
        ({"pretrained": "/no/such.safetensors"}, "no such file"),
    ],
)
def test_wrong_settings_are_named(digits: Digits, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(SelfsightError, match=words):
        train(digits[0][:64], tmp_path / "run", **changes)


def test_a_run_whose_network_takes_one_size_only_is_named(digits: Digits, tmp_path: Path) -> None:
    spec, begun = backbones.plan("convit_tiny", 224, 1, (0.5,), (0.25,)), RunFolder(tmp_path / "begun")
    begun.write_config({"backbone": backbones.spec_to_json(spec)})
    begun.save_backbone(backbones.create(spec))
    with pytest.raises(SelfsightError, match="convit_tiny: takes no images of 16 pixels"):
        train(digits[0][:64], tmp_path / "run", pretrained=str(tmp_path / "begun"), backbone="auto")


def test_settings_of_the_method_are_kept_in_the_config(digits: Digits, tmp_path: Path) -> None:
    config = Pretrain(out=tmp_path / "run", epochs=1, batch_size=32)
    run = pretrain(digits[0][:64], "simclr", config, SimCLR.Config(temperature=0.7))
    assert run is not None
    assert run.config()["method_config"]["temperature"] == 0.7
    assert run.config()["method_config"]["crop_min"] == 0.2, "what was chosen is kept as well"
