"""Of methods that hide patches: the best answer of a decoder that doesn't look at the image has the loss of chance."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.masking import encode, take, the_vit
from tests.methods.test_methods import SIZE, a_batch, a_method


class Blind(nn.Module):
    """A decoder that answers, at each place, the same for all images."""

    def __init__(self, usual: Tensor) -> None:
        super().__init__()
        self.usual = usual

    def forward(self, tokens: Tensor, kept: Tensor, asked: Tensor) -> Tensor:
        return take(self.usual.expand(len(tokens), -1, -1), asked)


def nothing(method: Any, x: Tensor) -> Tensor:
    """Of patches of mean 0."""
    return torch.zeros(1, method.grid**2, x.shape[1] * (x.shape[-1] // method.grid) ** 2)


def features(method: Any, x: Tensor) -> Tensor:
    """The mean over the batch of the teacher's normalized features."""
    full = encode(method.teacher.model, x)[:, the_vit(method.backbone).num_prefix_tokens :]
    return F.layer_norm(full, full.shape[-1:]).mean(0, keepdim=True)


def layers(method: Any, x: Tensor) -> Tensor:
    found: Tensor = method.targets(x).mean(0, keepdim=True)
    return found


@pytest.mark.parametrize(
    ("name", "decoder", "usual", "near"),
    # data2vec's chance is that of all patches, hidden or not
    [("mae", "decoder", nothing, 1e-5), ("ijepa", "predictor", features, 1e-5), ("data2vec", "decoder", layers, 0.1)],
)
def test_chance_is_the_loss_of_the_usual_answer(
    name: str, decoder: str, usual: Callable[[Any, Tensor], Tensor], near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method: Any = a_method(name)
    batch = a_batch()
    x = batch.images[:, :, :SIZE, :SIZE].float() / 255
    monkeypatch.setattr(method, "view", lambda _: x)
    with torch.no_grad():
        setattr(method, decoder, Blind(usual(method, x)))
        out = method(batch, 0.5)
    loss = out["loss"] - method.config.whole * out["summary"] if "summary" in out else out["loss"]
    assert float(loss) == pytest.approx(float(out["chance"]), rel=near)
