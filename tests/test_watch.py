"""What is written while a method trains."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from selfsight.pretraining import pretrain
from selfsight.training import Pretrain
from tests.test_training import Digits


@pytest.mark.parametrize(("method", "beside"), [("simclr", None), ("byol", "teacher"), ("dino", "student")])
def test_labels_are_asked_of_the_embeddings_and_change_nothing(
    digits: Digits, tmp_path: Path, method: str, beside: str | None
) -> None:
    images, labels = digits[0][:512], digits[1][:512]
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    np.savez(tmp_path / "bare.npz", images=images)
    runs = []
    for name in ("labelled", "bare"):
        config = Pretrain(out=tmp_path / name, epochs=1, batch_size=64, backbone="test_resnet")
        run = pretrain(tmp_path / f"{name}.npz", method, config)
        assert run is not None
        runs.append(run)
    last, bare = (run.metrics()[-1] for run in runs)
    assert float(last["projected"]) > 5, "the head's outputs have not collapsed"
    for kind in ("knn", "linear"):
        assert 0.3 < float(last[kind]) <= 1, "ten classes: chance is 0.1"
        assert kind not in bare
        for other in ("teacher", "student"):
            assert (float(last.get(f"{kind}_{other}") or 0) > 0.3) == (other == beside)
    weights, others = (load_file(run.weights_file) for run in runs)
    assert all(bool((weights[key] == others[key]).all()) for key in weights)
