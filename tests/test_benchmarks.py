"""What selfsight is measured beside: lightly's recipes run, and train what they should."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import beside_lightly
from benchmarks.beside_lightly import RECIPES, SIZE
from selfsight import backbones
from selfsight.backbones import Backbone
from selfsight.data import ImageSet, open_images
from selfsight.run import replace_file


def small(images: ImageSet | None = None) -> Backbone:
    """A tiny backbone, of the same weights each time."""
    torch.manual_seed(0)
    return backbones.create(backbones.plan("test_resnet", SIZE, 1, (0.29,), (0.35,)))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_lightlys_recipe(name: str, digits: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """Its transform gives the views that its loss takes, twice, and the loss's gradient reaches the whole backbone."""
    backbone = small()
    recipe = RECIPES[name](backbone, 8)
    views = [recipe.transform(Image.fromarray(image)) for image in digits[0][:8]]
    batch = [torch.stack(view) for view in zip(*views, strict=True)]
    assert [view.shape for view in batch[:2]] == [(8, 1, SIZE, SIZE)] * 2
    assert all(view.shape == (8, 1, SIZE // 2, SIZE // 2) for view in batch[2:])
    before = [weight.detach().clone() for weight in backbone.parameters()]
    for progress in (0.0, 0.5):
        loss = recipe.loss(batch, progress)
        recipe.optimizer.zero_grad()
        loss.backward()
        recipe.after()
        recipe.optimizer.step()
        assert torch.isfinite(loss)
    moved = [not torch.equal(old, new) for old, new in zip(before, backbone.parameters(), strict=True)]
    assert all(moved)


def test_lightlys_side_goes_on_after_its_last_whole_epoch(
    tmp_path: Path, digits: tuple[NDArray[np.uint8], NDArray[np.int64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first epoch of two, MoCo's weights, slow copies and queue end where an unbroken run's do."""
    np.savez(tmp_path / "few.npz", images=digits[0][:32])
    images = open_images(tmp_path / "few.npz", image_size=16)
    monkeypatch.setattr(beside_lightly, "fresh", small)

    def train(out: Path) -> Backbone:
        asked = beside_lightly.Arguments("", images=32, epochs=2, batch_size=8, out=out)
        return beside_lightly.train_theirs("moco_v2", images, asked, torch.device("cpu"))[0]

    whole = train(tmp_path / "whole.jsonl").state_dict()

    def save_and_stop(path: Path, write: Callable[[Path], object]) -> None:
        replace_file(path, write)
        raise KeyboardInterrupt

    monkeypatch.setattr(beside_lightly, "replace_file", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken.jsonl")
    monkeypatch.setattr(beside_lightly, "replace_file", replace_file)
    resumed = train(tmp_path / "broken.jsonl").state_dict()
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
