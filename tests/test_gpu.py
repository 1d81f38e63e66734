"""On a GPU selfsight computes what it computes on the CPU, and waits for the GPU no more than it must."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfsight import api, methods
from selfsight.data import augment
from selfsight.data.augment import View
from selfsight.data.images import Batch
from selfsight.training import Pretrain
from tests.methods.test_methods import a_batch, a_method, gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU computes in float32, without rounding to bfloat16 or TF32."""
    monkeypatch.setattr(augment, "fast_bf16", lambda device: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on(device: torch.device, batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.to(device)
    return replace(batch, images=batch.images.to(device), index=batch.index.to(device), labels=labels)


@pytest.mark.usefixtures("exactly")
@pytest.mark.parametrize("name", methods.names())
def test_a_step_on_the_gpu_is_that_of_the_cpu(name: str) -> None:
    losses: list[float] = []
    moved: list[dict[str, Tensor]] = []
    for device in (CPU, GPU):
        method = a_method(name, small=True).to(device)
        for part in method.modules():  # each device draws its own
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            if isinstance(part, nn.MultiheadAttention):
                part.dropout = 0.0
        torch.manual_seed(4)
        loss = method(on(device, a_batch()), 0.5)["loss"]
        moved.append({key: grad.cpu() for key, grad in gradients(method, loss).items()})
        method.after_step(0.5)
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for key, grad in moved[0].items():
        assert float((moved[1][key] - grad).norm()) <= 0.02 * float(grad.norm()) + 1e-5, key


FULL = View(
    40, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.3, blur=0.5, solarize=0.3, equalize=0.2, vflip=0.5
)


@pytest.mark.usefixtures("exactly")
@pytest.mark.parametrize("view", [FULL, replace(FULL, rotate90=0.5)])
def test_views_of_the_gpu_are_those_of_the_cpu(view: View) -> None:
    batch = a_batch(16)
    torch.manual_seed(3)
    drawn = view.draw(batch)
    drawn |= {"order": torch.randint(0, 24, (16,))}
    seen, other = view.apply(batch, drawn), view.apply(on(GPU, batch), drawn).cpu()
    # Values within rounding of solarize's threshold or of equalize's levels may fall on either side.
    plain = ~(drawn["solarize"] | drawn["equalize"])
    assert torch.allclose(seen[plain], other[plain], atol=1e-4)
    assert float((seen - other).abs().mean()) < 0.005


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_view_is_drawn_without_waiting_for_the_gpu() -> None:
    batch, view = on(GPU, a_batch()), replace(FULL, equalize=0.0)  # torchvision's equalize waits
    view(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        view(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["simclr", "dinov2", "deepcluster_v2"])
def test_trains_and_embeds(name: str, tmp_path: Path, digits_file: Path) -> None:
    backbone = "test_vit" if methods.get(name).vit else "test_resnet"
    config = Pretrain(out=tmp_path / "run", epochs=4, backbone=backbone, batch_size=64, fraction=0.15)
    run = api.pretrain(digits_file, name, config=config)
    rows = run.folder.metrics()
    assert all(math.isfinite(float(row["loss"])) for row in rows if row["loss"])
    vectors = run.embed(digits_file).features
    assert vectors.shape == (1797, run.backbone().dim)
    assert np.isfinite(vectors).all()
