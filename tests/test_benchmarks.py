"""What selfsight is measured beside: lightly's recipes run, and train what they should."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.beside_lightly import RECIPES, SIZE
from selfsight import backbones


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_lightlys_recipe(name: str, digits: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """Its transform gives the views that its loss takes, twice, and the loss's gradient reaches the whole backbone."""
    torch.manual_seed(0)
    backbone = backbones.create(backbones.plan("test_resnet", SIZE, 1, (0.29,), (0.35,)))
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
