"""The Python API, as the README shows it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import selfsight
from selfsight import methods

pytestmark = pytest.mark.usefixtures("few_checks")
Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]


def test_pretrain_embed_evaluate_load(digits: Digits, tmp_path: Path) -> None:
    data = tmp_path / "digits.npz"
    np.savez(data, images=digits[0][:400], labels=digits[1][:400])
    config = selfsight.Pretrain(backbone="test_resnet", batch_size=64)
    run = selfsight.pretrain(data, method="rotation", out=tmp_path / "run", epochs=1, config=config)
    assert run.method == "rotation"
    again = selfsight.load(tmp_path / "run")
    embedding = again.embed(data)
    assert embedding.features.shape == (400, 96)
    assert embedding.labels[:3] == ["0", "1", "2"]
    with torch.no_grad():
        direct = again.backbone()(torch.rand(1, 1, 16, 16))
    assert direct.shape == (1, 96)
    rows = again.evaluate(data, selfsight.EvaluateConfig(per_class=(5,), seeds=2, protocols=("linear",)))
    assert {row.method for row in rows} == {"rotation", "random", "pixels"}
    assert all(0.1 < row.value <= 1 for row in rows)


def test_arrays_and_settings(digits: Digits, tmp_path: Path) -> None:
    config = selfsight.Pretrain(backbone="test_resnet", batch_size=32, out=tmp_path / "run", epochs=1)
    settings = methods.get("simclr").Config()
    run = selfsight.pretrain(digits[0][:64], config=config, settings=settings)
    assert run.path == tmp_path / "run"
    assert len(run.embed(digits[0][:10]).names) == 10


def test_names_are_what_they_say() -> None:
    assert callable(selfsight.pretrain)
    assert callable(selfsight.load)
    for name in selfsight.__all__:
        assert getattr(selfsight, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        selfsight.nosuch  # noqa: B018


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(selfsight.SelfsightError, match="not a run"):
        selfsight.load(tmp_path)


def test_show_draws_the_test_part_with_the_trained_method(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "split.npz"
    split = np.array(["train"] * 64 + ["test"] * 5)
    np.savez(path, images=digits[0][:69], labels=digits[1][:69], split=split)
    config = selfsight.Pretrain(backbone="test_resnet", batch_size=32)
    run = selfsight.pretrain(path, method="rotation", out=tmp_path / "run", epochs=1, config=config)
    pictures = selfsight.load(tmp_path / "run").show()
    assert [p.file for p in pictures] == [tmp_path / "run" / "pictures-split" / name for name in ("01.png", "02.png")]
    assert "turned back as it answered" in pictures[0].caption
    assert "principal components" in pictures[1].caption
    with Image.open(pictures[1].file) as image:
        assert image.size == (5 * 64 + 4 * 4, 3 * 64 + 2 * 4), "five images are in the test part"
        first = np.asarray(image)[:64, :64, :3]
    np.testing.assert_array_equal(first[::4, ::4, 0], digits[0][64])
    state = run.trained_method().state_dict()
    trained = run.folder.load_backbone().state_dict()
    assert all(torch.equal(state[f"backbone.{k}"], v) for k, v in trained.items())
    again = run.show(path, tmp_path / "again", images=2)
    with Image.open(again[1].file) as image:
        assert image.width == 2 * 64 + 4
    for images in (0, 11):
        with pytest.raises(selfsight.SelfsightError, match=f"--images {images}: must be 1 to 10"):
            run.show(path, images=images)


def test_labels_that_a_training_saw_are_not_tested_on(digits: Digits, tmp_path: Path) -> None:
    split = np.where(np.arange(200) % 5, "train", "test")
    np.savez(tmp_path / "plain.npz", images=digits[0][:200], labels=digits[1][:200])
    np.savez(tmp_path / "split.npz", images=digits[0][:200], labels=digits[1][:200], split=split)
    config = selfsight.EvaluateConfig(labels=(1.0,), seeds=1, protocols=("knn",), baselines=False)
    for name in ("plain", "split"):
        flags = selfsight.Pretrain(out=tmp_path / name, epochs=1, batch_size=32, backbone="test_resnet")
        run = selfsight.pretrain(str(tmp_path / f"{name}.npz"), "supcon", config=flags)
        if name == "split":
            assert run.evaluate(config=config)
            half = selfsight.Pretrain(
                out=tmp_path / "half", epochs=1, batch_size=32, backbone="test_resnet", fraction=0.5
            )
            assert selfsight.pretrain(str(tmp_path / "split.npz"), "supcon", config=half).evaluate(config=config)
            other = selfsight.TrainConfig(test=str(tmp_path / "split.npz"))
            with pytest.raises(selfsight.SelfsightError, match="supcon has seen all labels"):
                run.train(str(tmp_path / "split.npz"), config=other)
            turned = np.where(split == "train", "test", "train")
            np.savez(tmp_path / "split.npz", images=digits[0][:200], labels=digits[1][:200], split=turned)
            with pytest.raises(selfsight.SelfsightError, match="put its train and test part back"):
                run.evaluate(config=config)
            np.savez(tmp_path / "split.npz", images=digits[0][:200], labels=digits[1][:200], split=split)
            continue
        with pytest.raises(selfsight.SelfsightError, match="supcon has seen all labels"):
            run.evaluate(config=config)
        on = replace(flags, out=tmp_path / "on", pretrained=str(run.path), backbone="auto")
        with pytest.raises(selfsight.SelfsightError, match=r"simclr has seen all labels .* or began with weights"):
            selfsight.pretrain(str(tmp_path / "plain.npz"), "simclr", config=on).evaluate(config=config)
        (tmp_path / "link.npz").symlink_to(tmp_path / "plain.npz")
        with pytest.raises(selfsight.SelfsightError, match="supcon has seen all labels"):
            run.evaluate(str(tmp_path / "link.npz"), config)
        with pytest.raises(selfsight.SelfsightError, match="supcon has seen all labels"):
            run.train(str(tmp_path / "plain.npz"))
        other = selfsight.TrainConfig(test=str(tmp_path / "plain.npz"))
        with pytest.raises(selfsight.SelfsightError, match="supcon has seen all labels"):
            run.train(str(tmp_path / "split.npz"), config=other)
        with pytest.raises(selfsight.SelfsightError, match="supcon has seen all labels"):
            run.evaluate(str(tmp_path / "split.npz"), config)  # of the same images, whose test part it saw too
        np.savez(tmp_path / "other.npz", images=digits[0][200:400], labels=digits[1][200:400], split=split)
        assert run.evaluate(str(tmp_path / "other.npz"), config), "other data may be measured"
