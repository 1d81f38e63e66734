"""The run around the learning: its folder, what is written there, and what is refused."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfsight import backbones, pretraining
from selfsight.api import Run, load
from selfsight.data import ImageSet
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError, StoppedError
from selfsight.locks import locked
from selfsight.methods import Facts
from selfsight.methods.deepcluster_v2 import DeepClusterV2
from selfsight.methods.simclr import SimCLR
from selfsight.methods.wmse import WMSE
from selfsight.pretraining import pretrain
from selfsight.processes import expect, leads
from selfsight.run import RunFolder
from selfsight.training import Pretrain, Trainee, fit, prepare
from tests.test_training import Digits, train

pytestmark = pytest.mark.usefixtures("few_checks")


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


def test_signals_are_given_back(digits: Digits, tmp_path: Path) -> None:
    """Else what comes after a training could not be ended."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(digits[0][:64], tmp_path / "run", batch_size=32)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_uses_only_the_train_part(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "split.npz"
    split = np.array(["train"] * 128 + ["test"] * 72)
    np.savez(path, images=digits[0][:200], labels=digits[1][:200], split=split)
    assert train(path, tmp_path / "run").config()["images"] == 128


def test_refuses_to_overwrite_a_run(digits: Digits, tmp_path: Path) -> None:
    train(digits[0][:64], tmp_path / "run", batch_size=32)
    with pytest.raises(SelfsightError, match="is finished"):
        train(digits[0][:64], tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    again = {"batch_size": 32, "resume": True}
    assert train(digits[0][:64], tmp_path / "run", **again).config_file.read_bytes() == before, "nothing to do"
    with pytest.raises(SelfsightError, match=r"--batch-size 16: .* was begun with 32"):
        train(digits[0][:64], tmp_path / "run", **(again | {"batch_size": 16}))
    finished = Pretrain(out=tmp_path / "run", resume=True)
    with pytest.raises(SelfsightError, match=r"--temperature 0\.7: .* was begun with 0\.2"):
        pretrain(digits[0][:64], "simclr", finished, SimCLR.Config(temperature=0.7))
    for images, method in ((digits[0][:64], "byol"), (digits[0][64:128], "simclr")):
        with pytest.raises(SelfsightError, match="is simclr on array; choose another folder"):
            pretrain(images, method, Pretrain(out=tmp_path / "run", resume=True))
    with pytest.raises(SelfsightError, match="was trained on array, which isn't here; name the images"):
        Run(RunFolder(tmp_path / "run")).images()


def test_pictures_that_cannot_be_drawn_lose_no_training(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pretraining, "say", said.append)
    monkeypatch.setattr(SimCLR, "picture", lambda *_: 1 / 0)
    run = train(digits[0][:64], tmp_path / "run", batch_size=32)
    assert run.weights_file.exists()
    assert run.method_file.exists()
    assert "its pictures can't be drawn (ZeroDivisionError" in said[-1]


@pytest.fixture
def folder(digits: Digits, tmp_path: Path) -> Path:
    """64 digits as files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(digits[0][:64]):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def test_a_file_that_is_damaged_meanwhile_is_listed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        ({"patch_size": 8}, "--patch-size 8: test_resnet is not a ViT"),
        ({"stem_stride": 1, "backbone": "test_vit"}, "--stem-stride 1: test_vit has no stem"),
        ({"patch_size": 5, "backbone": "test_vit"}, "--patch-size 5: does not divide views of 16 pixels"),
        ({"optimizer": "lars"}, "--optimizer lars: give its --lr too; 0.008 is muon's"),
    ],
)
def test_wrong_settings_are_named(digits: Digits, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(SelfsightError, match=words):
        train(digits[0][:64], tmp_path / "run", **changes)


def test_a_single_image_is_too_few(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match="1 image to train on"):
        train(digits[0][:1], tmp_path / "run")


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


def test_a_run_does_not_go_on_with_another_split(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what it has seen would be tested on."""
    split = np.where(np.arange(80) < 64, "train", "test")
    np.savez(tmp_path / "x.npz", images=digits[0][:80], split=split)
    data = str(tmp_path / "x.npz")
    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(StoppedError):
            train(data, tmp_path / "run", epochs=4, batch_size=16)
    np.savez(tmp_path / "x.npz", images=digits[0][:80], split=split[::-1])
    with pytest.raises(SelfsightError, match="other images to train on and to test on"):
        pretrain(data, "simclr", Pretrain(out=tmp_path / "run", resume=True))
    np.savez(tmp_path / "x.npz", images=digits[0][:80], split=split)
    assert pretrain(data, "simclr", Pretrain(out=tmp_path / "run", resume=True))
    np.savez(tmp_path / "x.npz", images=digits[0][20:100], split=split)
    with pytest.raises(SelfsightError, match="is finished, and the images have changed"):
        pretrain(data, "simclr", Pretrain(out=tmp_path / "run", resume=True))
    (tmp_path / "x.npz").unlink()
    assert pretrain(data, "simclr", Pretrain(out=tmp_path / "run", resume=True)), "a finished run needs none"


def test_a_run_of_two_processes_goes_on_with_two_though_they_are_not_asked_for_again(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each helper would think that it leads, and find the folder locked."""
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(StoppedError):
            train(digits[0][:64], run.path, epochs=4, batch_size=16)
    config = run.config()
    run.write_config(config | {"pretrain": config["pretrain"] | {"devices": 2}})

    def met(*_: object) -> None:
        monkeypatch.setenv("LOCAL_RANK", "1")
        raise RuntimeError("leads" if leads() else "helps")

    monkeypatch.setattr("selfsight.pretraining.fit", met)
    with pytest.raises(RuntimeError, match="helps"):
        pretrain(digits[0][:64], "simclr", Pretrain(out=run.path, resume=True))
    expect(1)


def test_a_finished_run_needs_none_of_its_flags_again(digits: Digits, tmp_path: Path) -> None:
    """A cluster may begin its job again: the images are compared as the run saw them, and limits are its own."""
    config = Pretrain(out=tmp_path / "run", image_size=16, channels=1, epochs=1, batch_size=32, backbone="test_resnet")
    photos = np.random.default_rng(0).integers(0, 256, (64, 40, 40), dtype=np.uint8)
    many = DeepClusterV2.Config(prototypes=500)
    pretrain(photos, "deepcluster_v2", config, many)
    assert RunFolder(tmp_path / "run").config()["method_config"]["prototypes"] < 500
    again = Pretrain(out=tmp_path / "run", resume=True)
    assert pretrain(photos, "deepcluster_v2", again, many)
    assert pretrain(photos, "deepcluster_v2", again)


def test_a_converted_run_is_not_resumed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_config({"method": "simclr", "data": ""})
    run.weights_file.write_bytes(b"")
    with pytest.raises(SelfsightError, match="was converted, not trained here"):
        pretrain(tmp_path, "simclr", Pretrain(out=run.path, resume=True))


def test_a_model_of_labels_is_not_overwritten(digits: Digits, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_config({"task": "classification", "run": "runs/a", "backbone": {}})
    for resume in (False, True):
        with pytest.raises(SelfsightError, match="holds a model that `selfsight train` made"):
            train(digits[0][:64], run.path, resume=resume)
    with pytest.raises(SelfsightError, match=r"`predict` and `export` take; name the run it was made from: runs/a"):
        load(run.path)


def test_features_that_are_not_finite_end_a_training_in_one_line(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W-MSE decomposes their covariance, which has no decomposition then."""
    forward = WMSE.forward

    def poisoned(self: WMSE, batch: Batch, progress: float) -> dict[str, Tensor]:
        next(self.parameters()).data.fill_(math.nan)
        return forward(self, batch, progress)

    monkeypatch.setattr(WMSE, "forward", poisoned)
    config = Pretrain(out=tmp_path / "run", epochs=1, batch_size=64, backbone="test_resnet")
    with pytest.raises(SelfsightError, match=r"step 0: .*try a lower --lr or --clip 1"):
        pretrain(digits[0][:128], "wmse", config)


def test_labels_are_not_learned_of_a_neighbours_pixels(
    tmp_path: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cache a file that is damaged behind its header would be replaced by a neighbour when it is met."""
    for i, (pixels, label) in enumerate(zip(digits[0][:40], digits[1][:40], strict=True)):
        file = tmp_path / "data" / str(label % 2) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    damaged = tmp_path / "data" / "0" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    config = Pretrain(cache=False)
    assert prepare(tmp_path / "data", config)[1].images == 40
    assert prepare(tmp_path / "data", config, verify=True)[1].images == 39
    asked: list[bool] = []

    def noted(*_: object, verify: bool) -> None:
        asked.append(verify)
        raise SelfsightError("seen")

    for method in ("supcon", "simclr"):
        monkeypatch.setattr("selfsight.pretraining.prepare", noted)
        with pytest.raises(SelfsightError, match="seen"):
            pretrain(tmp_path / "data", method, Pretrain(out=tmp_path / method))
    assert asked == [True, False]


def test_two_trainings_never_share_a_folder(digits: Digits, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with locked(run.lock_file, "", wait=False):
        with pytest.raises(SelfsightError, match=r"run: another process trains in this folder"):
            train(digits[0][:64], run.path)
        assert not run.config_file.exists()
    train(digits[0][:64], run.path, batch_size=32)


@pytest.fixture
def stopped(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of 16 steps on 64 images, stopped after its first."""
    step = SimCLR.after_step

    def interrupt(self: SimCLR, progress: float) -> None:
        step(self, progress)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(SimCLR, "after_step", interrupt)
        with pytest.raises(StoppedError):
            train(digits[0][:64], tmp_path / "run", epochs=4, batch_size=16)
    return RunFolder(tmp_path / "run")


def test_a_run_goes_on_with_what_was_chosen_for_it_and_with_nothing_else(
    digits: Digits, stopped: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, begun = digits[0][:64], stopped.config()
    for changes, words in (
        ({"lr": 1e-4}, "--lr 0.0001: .* was begun with None"),
        ({"batch_size": 32}, "--batch-size 32: .* was begun with 16"),
    ):
        with pytest.raises(SelfsightError, match=words):
            train(images, stopped.path, resume=True, **({"epochs": 4, "batch_size": 16} | changes))
    with pytest.raises(SelfsightError, match=r"--temperature 0.9: .* was begun with"):
        pretrain(images, "simclr", Pretrain(out=stopped.path, resume=True), SimCLR.Config(temperature=0.9))
    with pytest.raises(SelfsightError, match=r"begun with other images \(64, now 65\)"):
        pretrain(digits[0][:65], "simclr", Pretrain(out=stopped.path, resume=True))
    assert stopped.config() == begun, "a refusal changes nothing"
    stopped.write_config(begun | {"pretrain": begun["pretrain"] | {"cache": False}})
    begun = stopped.config()
    seen: list[Pretrain] = []

    def noted(data: object, config: Pretrain, *, verify: bool) -> tuple[ImageSet, Facts]:
        seen.append(config)
        return prepare(data, config, verify=verify)

    monkeypatch.setattr(pretraining, "prepare", noted)
    # On a machine where other things would be chosen: the run's own count.
    monkeypatch.setattr("selfsight.training.new_backbone", None)
    run = pretrain(images, "simclr", Pretrain(out=stopped.path, resume=True, checkpoint_minutes=1.0))
    assert run is not None
    assert run.config()["measured"]["steps"] == 16
    assert (seen[0].cache, seen[0].checkpoint_minutes) == (False, 1.0), "what makes no difference is asked for anew"
    assert run.config()["pretrain"] == begun["pretrain"]


def test_what_the_data_limits_and_paths_written_otherwise_are_the_same_settings(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(digits[0][:64], tmp_path / "first", batch_size=32)
    asked, images = DeepClusterV2.Config(prototypes=500), digits[0][:64]  # 16 at most
    begun = Pretrain(out=tmp_path / "run", epochs=2, batch_size=32, pretrained=f"{first.path}/")
    with monkeypatch.context() as patch:
        patch.setattr(DeepClusterV2, "after_step", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(StoppedError):
            pretrain(images, "deepcluster_v2", begun, asked)
    again = replace(begun, pretrained=str(first.path), resume=True)
    with pytest.raises(SelfsightError, match=r"--prototypes 8: .* was begun with 16"):
        pretrain(images, "deepcluster_v2", again, DeepClusterV2.Config(prototypes=8))
    assert pretrain(images, "deepcluster_v2", again, asked)


def test_a_run_that_died_before_its_first_checkpoint_starts_anew_with_other_flags(
    digits: Digits, stopped: RunFolder
) -> None:
    stopped.checkpoint_file.unlink()
    run = train(digits[0][:64], stopped.path, resume=True, batch_size=32)
    assert run.config()["chosen"]["batch_size"] == 32


def test_what_comes_after_a_training_keeps_images_where_it_did(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "home"))
    mine = Run(train(folder, tmp_path / "mine", batch_size=32, cache_dir=tmp_path / "scratch"))
    none = Run(train(folder, tmp_path / "none", batch_size=32, cache=False))
    for run in (mine, none):
        assert len(run.images()) == len(run.index(folder)) == 64
    assert not (tmp_path / "home").exists()
    assert len(list((tmp_path / "scratch").glob("*/images.npy"))) == 1


def test_a_gpu_that_is_too_small_is_said_in_one_line(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(L.Trainer, "fit", full)
    with pytest.raises(SelfsightError, match=r"--batch-size 32: needs more memory than the GPU has; try 16"):
        train(digits[0][:64], tmp_path / "run", batch_size=32)
