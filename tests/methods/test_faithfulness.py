"""Each method's loss, and the gradient of every weight, equal a slow reference written from its paper."""

import pytest
import torch

from selfsight import methods
from selfsight.methods import Method
from tests.methods.references import REFERENCES
from tests.methods.test_methods import a_batch, a_method, gradients

IMAGES = 6


def ready(name: str) -> Method:
    """A method in float64, without dropout, some way into its training."""
    method = a_method(name, small=True).double()
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            module.train(False)
    if name == "deepcluster_v2":
        method.get_buffer("clusters").random_(0, method.get_buffer("centres").shape[1])
    return method


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_loss_and_gradients_equal_a_slow_reference(name: str) -> None:
    method, batch = ready(name), a_batch(IMAGES)
    torch.manual_seed(3)
    expected = REFERENCES[name](method, batch)
    wanted = gradients(method, expected)
    torch.manual_seed(3)
    loss = method(batch, 0.5)["loss"]
    assert loss.dtype == torch.float64
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    found = gradients(method, loss)
    assert found.keys() == wanted.keys()
    for parameter in found:
        assert torch.allclose(found[parameter], wanted[parameter], atol=1e-5, rtol=1e-5), parameter


def test_each_method_but_those_that_answer_a_puzzle_has_a_reference() -> None:
    puzzles = {"affine", "colorization", "inpainting", "jigsaw", "rotation"}  # their references are in their own tests
    assert REFERENCES.keys() == set(methods.names()) - puzzles
