"""The ways of computing that are quick on CPUs give torch's answers and gradients."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from selfsight.cpu import Exact, Products, quick

CPU = torch.device("cpu")


def _answer_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    answer = module(x)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    return [answer, *torch.autograd.grad(answer.square().sum(), [x, *weights])]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the matrix products of convolutions."""
    count = [0]
    linear = torch.nn.functional.linear

    def counted(*arguments: Any) -> Tensor:
        count[0] += 1
        return linear(*arguments)

    monkeypatch.setattr("selfsight.cpu.F.linear", counted)
    return count


@pytest.mark.parametrize(
    ("sides", "kernel", "stride", "padding", "places"),
    [
        ((2, 2), 3, 1, 1, 4),
        ((3, 3), 3, 1, 1, 9),
        ((4, 4), 3, 2, 1, 4),
        ((2, 2), 1, 1, 0, 4),
        ((5, 4), 3, 2, 1, 6),
        ((3, 1), (3, 1), (2, 1), (1, 0), 2),
        ((1, 1), 7, 1, 3, 1),
        ((4, 4), 4, 4, 0, 1),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_small_maps_are_products_with_the_same_answers_and_gradients(
    sides: tuple[int, int], kernel: Any, stride: Any, padding: Any, places: int, bias: bool, products: list[int]
) -> None:
    layer = nn.Conv2d(3, 5, kernel, stride, padding, bias=bias).double()
    x = torch.randn(32, 3, *sides, dtype=torch.float64).to(memory_format=torch.channels_last)
    expected = _answer_and_gradients(layer, x)
    with quick(layer, CPU, many_patches=False):
        found = _answer_and_gradients(layer, x)
    assert products == [places]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("images", "side", "device"), [(32, 4, "cpu"), (31, 2, "cpu"), (32, 2, "cuda"), (32, 2, "meta")]
)
def test_larger_maps_few_images_and_other_devices_have_torchs_kernel(
    images: int, side: int, device: str, products: list[int]
) -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1)
    with quick(layer, torch.device(device), many_patches=False):
        layer(torch.rand(images, 3, side, side))
    assert products == [0]


@pytest.mark.parametrize("changed", [{"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_other_convolutions_are_left_alone(changed: dict[str, Any]) -> None:
    layer = nn.Conv2d(4, 4, 3, **({"padding": 1} | changed))
    with quick(layer, CPU, many_patches=False):
        assert type(layer) is nn.Conv2d


def test_an_image_smaller_than_the_kernel_is_refused_as_torch_does() -> None:
    layer = nn.Conv2d(3, 5, 3)
    with quick(layer, CPU, many_patches=False), pytest.raises(RuntimeError, match="Kernel size"):
        layer(torch.rand(32, 3, 2, 2))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_efficientnet_lite0"])
def test_depthwise_convolutions_are_computed_in_float32(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    x, seen = torch.rand(2, 3, 64, 64), []
    depthwise = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    for layer in depthwise:
        layer.register_forward_hook(lambda layer, inputs, answer: seen.append((inputs[0].dtype, answer.dtype)))
    exact = model(x)
    with quick(model, CPU, many_patches=False):
        assert all(isinstance(layer, Exact) for layer in depthwise)
        torch.testing.assert_close(model(x), exact)  # without autocast nothing changes
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            narrow = model(x)
    assert len(seen) == len(depthwise)
    assert all(before == after for before, after in seen)
    assert {dtype for dtype, _ in seen} <= {torch.bfloat16, torch.float32}
    assert torch.nn.functional.cosine_similarity(narrow.float(), exact).min() > 0.99
    layer = depthwise[0]
    y = torch.rand(2, layer.in_channels, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), quick(layer, CPU, many_patches=False):
        inside = layer(y)
    assert torch.equal(inside, layer(y.float()).bfloat16())


def test_layers_are_as_before_after_the_block_and_an_error_in_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(RuntimeError, match="shapes"), quick(model, CPU, many_patches=False):
        model(torch.rand(32, 2, 2, 2))
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Conv2d]


def test_a_copy_made_in_the_block_has_weights_of_its_own() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.rand(32, 3, 2, 2)
    with torch.no_grad(), quick(layer, CPU, many_patches=False):
        twin = copy.deepcopy(layer)
        layer.weight.zero_()
        assert not torch.equal(twin(x), layer(x))


def test_several_blocks_within_each_other_end_as_they_began() -> None:
    layer = nn.Conv2d(3, 4, 3, groups=1, padding=1)
    with quick(layer, CPU, many_patches=False):
        with quick(layer, CPU, many_patches=False):
            assert type(layer) is Products
        assert type(layer) is Products
    assert type(layer) is nn.Conv2d
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    with quick(depthwise, CPU, many_patches=False), quick(depthwise, CPU, many_patches=False):
        assert type(depthwise).__mro__.count(Exact) == 1
    assert type(depthwise) is nn.Conv2d
