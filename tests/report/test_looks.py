"""What a backbone looks at: attention and components are what timm's and numpy's own computations give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight import backbones
from selfsight.backbones import Backbone
from selfsight.data import ImageSet
from selfsight.report.looks import FINE, attention, attention_weights, components, draw_looks, fine_map


def a_backbone(name: str, channels: int = 3, size: int = 48) -> Backbone:
    torch.manual_seed(0)
    return backbones.create(backbones.plan(name, size, channels, (0.5,) * channels, (0.25,) * channels)).eval()


def crops(photo: NDArray[np.uint8], n: int = 4, size: int = 48) -> Tensor:
    squares = [photo[40 * i : 40 * i + size, 60 * i : 60 * i + size] for i in range(n)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit4"])
def test_attention_is_the_softmax_of_the_last_layers_queries_and_keys(name: str, photo: NDArray[np.uint8]) -> None:
    backbone, x = a_backbone(name), crops(photo)
    layer = backbone.model.blocks[-1].attn
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        before = backbone(x)
        weights = attention_weights(backbone, x)
        hook.remove()
        b, n, _ = inputs[0].shape
        q, k, _ = layer.qkv(inputs[0]).reshape(b, n, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
        plain = (layer.q_norm(q) @ layer.k_norm(k).transpose(-2, -1) * layer.scale).softmax(-1)
        after = backbone(x)
    assert weights is not None
    assert weights.shape == plain.shape
    assert torch.allclose(weights, plain, atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    assert torch.equal(before, after), "the network is left as it was"


def test_attention_with_rotary_positions_is_caught_as_well(photo: NDArray[np.uint8]) -> None:
    backbone, x = a_backbone("eva02_tiny_patch14_224", size=56), crops(photo, 2, 56)
    with torch.no_grad():
        weights = attention_weights(backbone, x)
    assert weights is not None
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)


def test_attention_to_patches_is_from_the_class_token_or_the_mean_of_all(photo: NDArray[np.uint8]) -> None:
    x = crops(photo)
    with torch.no_grad():
        for name, prefix in (("test_vit", 1), ("test_vit2", 1)):
            backbone = a_backbone(name)
            weights, maps = attention_weights(backbone, x), attention(backbone, x)
            assert weights is not None
            assert maps is not None
            rows = weights[:, :, 0] if name == "test_vit" else weights[:, :, prefix:].mean(2)
            side = 48 // (backbone.spec.patch_size or 16)
            assert maps.shape == (4, 2, side, side)
            assert torch.equal(maps[1, 0, 1, 2], rows[1, 0, prefix + side + 2]), "row by row, without the class token"
        backbone = backbones.create(replace(a_backbone("test_vit").spec, mean_tokens=True)).eval()
        weights, maps = attention_weights(backbone, x), attention(backbone, x)
        assert weights is not None
        assert maps is not None
        assert torch.allclose(maps[1, 0, 0, 0], weights[1, 0, 1:, 1].mean()), "nothing trained its class token"


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_network_without_attention_has_none(name: str, photo: NDArray[np.uint8]) -> None:
    with torch.no_grad():
        assert attention(a_backbone(name), crops(photo)) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_components_are_numpys(name: str, photo: NDArray[np.uint8]) -> None:
    backbone, x = a_backbone(name), crops(photo)
    with torch.no_grad():
        colours, maps = components(backbone, x), fine_map(backbone, x)
    flat = maps.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    centred = flat - flat.mean(0)
    vectors = np.linalg.svd(centred, full_matrices=False)[2][:3]
    expected = centred @ vectors.T  # (positions, 3), each up to its sign
    found = colours.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    for i in range(3):
        low, high = np.percentile(expected[:, i], (2, 98))
        scaled = ((expected[:, i] - low) / (high - low)).clip(0, 1)
        error = min(np.abs(found[:, i] - scaled).max(), np.abs(found[:, i] - (1 - scaled)).max())
        assert error < 2e-3, i


def test_a_cnn_shows_its_last_map_that_is_fine_enough_and_else_its_last(photo: NDArray[np.uint8]) -> None:
    backbone, x = a_backbone("test_resnet"), crops(photo)  # 48 pixels
    with torch.no_grad():
        last, fine = backbone.maps(x), fine_map(backbone, F.interpolate(x, (64, 64)))
    assert min(last.shape[2:]) < FINE
    assert fine.shape[2:] == (8, 8)


@pytest.mark.parametrize(("name", "channels"), [("test_vit", 1), ("test_vit", 3), ("test_resnet", 5)])
def test_pictures_of_any_bands_begin_with_the_images(name: str, channels: int, photo: NDArray[np.uint8]) -> None:
    pixels = (crops(photo, 6)[:, torch.arange(channels) % 3] * 255).byte().numpy()
    images = ImageSet("photos", pixels, np.ones(6, np.float32), [str(i) for i in range(6)])
    backbone = a_backbone(name, channels)
    pictures = draw_looks(backbone, images, np.array([0, 2, 4]))
    assert [len(drawn) for drawn in pictures.values()] == ([1 + 1 + 2, 3] if name == "test_vit" else [3])
    for caption, drawn in pictures.items():
        assert caption
        assert drawn.shape[1:] == (3, 3, 48, 48)
        assert float(drawn.min()) >= 0
        assert float(drawn.max()) <= 1
        if channels == 3:
            assert torch.allclose(drawn[0], torch.from_numpy(pixels[[0, 2, 4]]) / 255, atol=1e-6)
        else:
            assert drawn[0].std() > 0.05
        assert drawn[1:].std(dim=(0, 2, 3, 4)).min() > 0.01, "something is to be seen in each"


def test_one_image_whose_map_is_a_single_position_is_drawn() -> None:
    images = ImageSet("one", np.full((1, 1, 16, 16), 7, np.uint8), np.ones(1, np.float32), ["0"])
    (drawn,) = draw_looks(a_backbone("test_resnet", 1, 16), images, np.array([0])).values()
    assert torch.isfinite(drawn).all()
