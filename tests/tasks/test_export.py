"""Trained models as ONNX: their answers are torch's."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from selfsight.errors import SelfsightError
from selfsight.run import RunFolder
from selfsight.tasks.classification import ClassificationConfig
from selfsight.tasks.curve import TrainConfig, train
from selfsight.tasks.export import _examples, export_task
from selfsight.tasks.jobs import DetectionConfig, SegmentationConfig
from selfsight.tasks.learning import LearnConfig
from selfsight.tasks.predict import load_model
from tests.tasks.scenes import SIDE, backbone
from tests.tasks.test_curve import scenes

LEARNING = LearnConfig(min_steps=20, epochs=0.1, batch_size=4, lr=3e-3, checks=1)


def model(folder: Path, out: Path, settings: Any, data: str = "") -> Path:
    config, net = TrainConfig(image_size=SIDE, test=str(folder / "train")), backbone("test_resnet")
    train(net, folder / data, config, settings, LEARNING, method="simclr", run="run", out=out)
    return out


def answers(file: Path, images: torch.Tensor) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, {"images": images.numpy()})
    return found


def test_a_classifier_gives_the_same_confidences(tmp_path: Path, digits_file: Path) -> None:
    net = backbone("test_resnet", 16, 1)
    for settings in (ClassificationConfig(head="linear"), ClassificationConfig(head="knn")):
        out = tmp_path / settings.head
        train(net, digits_file, TrainConfig(), settings, LEARNING, method="simclr", run="run", out=out)
        file = export_task(out)
        assert file == out / "model.onnx"
        trained = load_model(out).model.cpu()
        for n in (1, 5):
            x = torch.rand(n, 1, 16, 16)
            with torch.inference_mode():
                expected = trained(x).softmax(1)
            (found,) = answers(file, x)
            assert np.abs(found - expected.numpy()).max() < 1e-4


def test_a_segmenter_gives_the_same_logits_and_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = model(scenes(tmp_path / "scenes"), tmp_path / "out", SegmentationConfig(width=32))
    file = export_task(out, tmp_path / "segmenter.onnx")
    x = torch.rand(3, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = load_model(out).model.cpu()(x)
    (found,) = answers(file, x)
    assert np.abs(found - expected.numpy()).max() < 1e-3 * max(1, float(expected.abs().max()))
    with pytest.raises(SelfsightError, match=r"\.onnx file"):
        export_task(out, tmp_path / "model.pt")
    monkeypatch.setattr(torch.onnx, "export", lambda module, images, path, **_: shutil.copy(file, path))
    monkeypatch.setattr("selfsight.tasks.export.TOLERANCE", -1.0)
    with pytest.raises(SelfsightError, match="differ"):
        export_task(out)
    assert not (out / "model.onnx").exists()


def test_a_detector_gives_the_same_boxes(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    out = model(folder, tmp_path / "out", DetectionConfig(width=32))
    file = export_task(out)
    detector = load_model(out).model.cpu()
    some = 0
    for seed in range(3):
        x = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            (expected,) = detector(x)
        boxes, scores, labels = answers(file, x)
        some += len(boxes)
        assert np.abs(boxes - expected["boxes"].numpy()).max(initial=0) < 1e-2
        assert np.abs(scores - expected["scores"].numpy()).max(initial=0) < 1e-4
        assert labels.tolist() == expected["labels"].tolist()
    assert some, "nothing was compared"


def test_a_detector_is_checked_on_images_of_its_data_or_says_that_nothing_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scenes(tmp_path / "scenes")
    out = model(folder, tmp_path / "out", DetectionConfig(width=32), "train/annotations.json")
    trained = load_model(out)
    shown = _examples(str(folder / "train" / "annotations.json"), trained)
    expected = _examples(str(folder / "train"), trained)
    assert torch.equal(shown, expected)
    assert not torch.equal(shown, _examples("gone", trained))
    torch.nn.init.constant_(
        next(p for n, p in trained.model.named_parameters() if n.endswith("cls_logits.bias")), -50.0
    )
    RunFolder(out).save_method(trained.model.cpu())
    export_task(out)
    assert "no box was compared" in " ".join(capsys.readouterr().err.split())
