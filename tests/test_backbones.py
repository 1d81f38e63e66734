"""Any timm model at any size, with pooled features and maps; clear errors for what doesn't fit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from selfsight import backbones
from selfsight.errors import SelfsightError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 28),
        ("resnet10t", 64),
        ("resnet10t", 96),
        ("vit_tiny_patch16_224", 28),
        ("vit_tiny_patch16_224", 64),
        ("convnext_atto", 64),
        ("test_resnet", 32),
        ("resnetv2_50", 32),
        ("wide_resnet28_2", 32),
        ("poolformer_s12", 64),
        ("swin_tiny_patch4_window7_224", 64),
        ("mobilenetv3_small_050", 64),
    ],
)
def test_features_and_maps_have_the_models_width(name: str, size: int) -> None:
    backbone = backbones.create(backbones.plan(name, size, 3, MEAN, STD)).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert backbone(x).shape == (2, backbone.dim)
        maps = backbone.maps(x)
    assert maps.shape[:2] == (2, backbone.map_dim)
    assert maps.shape[2] == maps.shape[3]
    assert (backbone.dim == backbone.map_dim) == (name != "mobilenetv3_small_050"), "it widens the pooled map"


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("resnet18", backbones.IMAGENET_MEAN),
        ("wide_resnet28_2", backbones.IMAGENET_MEAN),  # without weights
        ("vit_tiny_patch16_224", (0.5, 0.5, 0.5)),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5)),
        ("vit_base_patch16_clip_224.openai", (0.48145466, 0.4578275, 0.40821073)),
    ],
)
def test_known_weights_are_shown_the_colours_that_they_were_trained_with(name: str, mean: tuple[float, ...]) -> None:
    assert backbones.colours_of(name)[0] == mean


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_where_only_maps_are_trained_every_trained_weight_has_a_gradient(name: str) -> None:
    """Several processes wait for the gradients of all."""
    backbone = backbones.create(backbones.plan(name, 64, 3, MEAN, STD))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train_maps_only()
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    backbone.maps(torch.rand(4, 3, 64, 64)).square().mean().backward()
    for key, weight in backbone.named_parameters():
        assert weight.requires_grad == (weight.grad is not None), key
    trained = sum(weight.numel() for weight in backbone.parameters() if weight.requires_grad)
    assert trained > 0.4 * sum(weight.numel() for weight in backbone.parameters())


@pytest.mark.parametrize(("name", "millions"), [("wide_resnet28_2", 1.47), ("wide_resnet28_10", 36.5)])
def test_wide_resnets_are_those_of_the_paper(name: str, millions: float) -> None:
    model: Any = timm.create_model(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)  # its table 4
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 25, "and a 1x1 in each stage's shortcut: 28"
    maps = backbones.create(backbones.plan("wide_resnet28_2", 32, 3, MEAN, STD)).pyramid(torch.rand(1, 3, 32, 32))
    assert [m.shape[1:] for m in maps] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]


def test_a_vit_begins_with_places_told_apart_and_weights_to_its_width() -> None:
    vit: Any = backbones.create(backbones.plan("vit_tiny_patch16_224", 32, 3, MEAN, STD)).model
    grid, width = vit.patch_embed.grid_size[0], vit.embed_dim
    rows = vit.pos_embed[0, vit.num_prefix_tokens :].detach().view(grid, grid, width)
    distance = (rows - rows[0, 0]).norm(dim=2)
    assert distance[0, 0] == 0
    assert bool((distance[0].diff() > 0).all()), "farther along a row is farther"
    assert torch.allclose(distance, distance.T, atol=1e-5)
    for linear, fan in ((vit.blocks[0].attn.qkv, 2 * width), (vit.blocks[-1].mlp.fc1, 5 * width)):  # q alone: D to D
        assert float(linear.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.02)
        assert not linear.bias.any()


def test_normalizes_its_input() -> None:
    backbone = backbones.create(backbones.plan("test_resnet", 32, 3, MEAN, STD)).eval()
    x = torch.rand(2, 3, 32, 32)
    shape = (1, 3, 1, 1)
    normalized = (x - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
    assert torch.allclose(backbone(x), backbone.model(normalized), atol=1e-6)


def test_small_images_get_a_small_stem_and_large_ones_timms_own() -> None:
    tiny = backbones.create(backbones.plan("resnet18", 32, 3, MEAN, STD)).model
    small = backbones.create(backbones.plan("resnet18", 64, 3, MEAN, STD)).model
    large = backbones.create(backbones.plan("resnet18", 65, 3, MEAN, STD)).model
    assert tiny.conv1.kernel_size == small.conv1.kernel_size == (3, 3)
    assert isinstance(tiny.maxpool, torch.nn.Identity)
    assert isinstance(small.maxpool, torch.nn.AvgPool2d)
    assert large.conv1.kernel_size == (7, 7)
    assert isinstance(large.maxpool, torch.nn.MaxPool2d)


@pytest.mark.parametrize(("size", "side"), [(32, 2), (40, 3), (48, 2), (64, 2), (96, 3)])
def test_reduction_tells_the_side_of_the_map(size: int, side: int) -> None:
    backbone = backbones.create(backbones.plan("resnet10t", size, 1, (0.5,), (0.25,))).eval()
    assert backbone.maps(torch.rand(1, 1, size, size)).shape[-1] == side == -(-size // backbone.reduction)


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (64, 8), (96, 16), (224, 16)])
def test_vits_get_patches_that_see_enough(size: int, patch: int) -> None:
    assert backbones.plan("vit_tiny_patch16_224", size, 3, MEAN, STD).patch_size == patch


@pytest.mark.parametrize(
    ("name", "size", "strides"),
    [
        ("test_resnet", 32, [2, 4, 8, 16]),  # no pool: the stem's map and the first stage's are alike
        ("test_resnet", 64, [2, 4, 8, 16, 32]),
        ("resnet10t", 96, [2, 4, 8, 16, 32]),
        ("resnetv2_50", 64, [2, 4, 8, 16, 32]),
        ("test_convnext", 64, [4, 8, 16, 32]),
        ("test_efficientnet", 64, [2, 4, 8, 16, 32]),
        ("test_vit", 96, [16] * 4),
        ("test_vit", 48, [8] * 4),
        ("swin_tiny_patch4_window7_224", 64, [4, 8, 16, 32]),
    ],
)
def test_a_pyramid_of_any_rectangle_has_the_strides_and_channels_it_tells(
    name: str, size: int, strides: list[int]
) -> None:
    backbone = backbones.create(backbones.plan(name, size, 3, MEAN, STD)).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        maps, last = backbone.pyramid(x), backbone.maps(x)
    assert backbone.pyramid_strides == strides
    assert backbone.hierarchical == (len(set(strides)) > 1)
    shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(backbone.pyramid_channels, strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes
    if name != "test_efficientnet":  # which widens its last map once more before it is pooled
        assert torch.allclose(maps[-1], last, atol=1e-5)


def test_a_vits_maps_of_a_rectangle_keep_rows_and_columns() -> None:
    backbone = backbones.create(backbones.plan("test_vit", 64, 3, MEAN, STD)).eval()
    x = torch.rand(1, 3, 32, 64)
    changed = x.clone()
    changed[:, :, 8:16, 40:48] = 0  # the patch in row 1, column 5
    difference = (backbone.maps(x) - backbone.maps(changed)).abs().sum(1)[0]  # (4, 8)
    assert difference.shape == (4, 8)
    assert difference.argmax() == 1 * 8 + 5


def test_a_size_that_maps_cannot_have_is_named() -> None:
    backbone = backbones.create(backbones.plan("test_resnet", 64, 3, MEAN, STD))
    with pytest.raises(SelfsightError, match=r"images of 80 x 64 pixels: .* need multiples of 32"):
        backbone.pyramid(torch.rand(1, 3, 64, 80))


def test_takes_channels_of_the_data() -> None:
    spec = backbones.plan("resnet10t", 32, 13, (0.5,) * 13, (0.2,) * 13)
    assert backbones.create(spec)(torch.rand(2, 13, 32, 32)).shape == (2, 512)


def test_loads_weights_of_a_file(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    spec = backbones.plan("test_resnet", 32, 3, MEAN, STD, pretrained=True)
    for name in ("weights.safetensors", "weights.pth"):
        backbone = backbones.load_pretrained(spec, str(tmp_path / name))
        assert torch.equal(backbone.state_dict()["model.conv1.0.weight"], model.state_dict()["conv1.0.weight"])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    spec = backbones.plan("resnet10t", 32, 3, MEAN, STD, pretrained=True)
    with pytest.raises(SelfsightError, match=r"weights.safetensors: doesn't fit resnet10t"):
        backbones.load_pretrained(spec, str(tmp_path / "weights.safetensors"))


def test_an_unknown_model_is_named_with_near_ones() -> None:
    with pytest.raises(SelfsightError, match=r"--backbone resnet19: .*near it: .*resnet"):
        backbones.plan("resnet19", 32, 3, MEAN, STD)


@pytest.mark.parametrize("name", ["levit_128", "maxvit_pico_rw_256", "efficientvit_b0", "mobilevit_xxs"])
def test_networks_that_only_have_vit_in_their_name_get_no_patches(name: str) -> None:
    assert backbones.plan(name, 64, 3, MEAN, STD).patch_size is None


def test_attention_on_a_cpu_is_plain_for_a_block_and_the_same(fused: list[bool]) -> None:
    backbone, x = backbones.create(backbones.plan("test_vit", 32, 3, MEAN, STD)).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected, depth = backbone(x), len(fused)
        assert depth == len(backbone.model.blocks)
        with backbones.quick_on_cpu(torch.nn.Sequential(backbone), torch.device("cpu")):
            assert torch.allclose(backbone(x), expected, atol=1e-5)
        with pytest.raises(ValueError, match="amiss"), backbones.quick_on_cpu(backbone, torch.device("cpu")):
            raise ValueError("amiss")
        assert len(fused) == depth
        backbone(x)
        assert len(fused) == 2 * depth


@pytest.mark.parametrize(("size", "device"), [(32, "cuda"), (272, "cpu")])
def test_attention_stays_fused_on_gpus_and_for_many_patches(size: int, device: str, fused: list[bool]) -> None:
    backbone = backbones.create(backbones.plan("test_vit", size, 3, MEAN, STD)).eval()
    with backbones.quick_on_cpu(backbone, torch.device(device)):
        backbone(torch.rand(1, 3, size, size))
    assert len(fused) == len(backbone.model.blocks)


def test_attention_stays_fused_for_larger_images_than_the_backbones_own(fused: list[bool]) -> None:
    backbone = backbones.create(backbones.plan("test_vit", 32, 3, MEAN, STD)).eval()
    with torch.no_grad(), backbones.quick_on_cpu(backbone, torch.device("cpu"), side=32 * 17):
        backbone(torch.rand(1, 3, 32, 32))
    assert len(fused) == len(backbone.model.blocks)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "beit3_base_patch16_224"])
def test_what_takes_no_part_in_the_mean_of_tokens_is_not_trained(name: str) -> None:
    """Several processes would wait for its gradient."""
    spec = backbones.plan(name, 32, 3, MEAN, STD, patch_size=16 if "siglip" in name else None, mean_tokens=True)
    backbone = backbones.create(spec)
    backbone(torch.rand(2, 3, 32, 32)).square().sum().backward()
    left = [name for name, w in backbone.named_parameters() if w.requires_grad and w.grad is None]
    assert left == []


def test_a_size_without_a_patch_is_named() -> None:
    with pytest.raises(SelfsightError, match="--image-size 75"):
        backbones.plan("vit_tiny_patch16_224", 75, 3, MEAN, STD)


@pytest.mark.parametrize("name", ["convit_tiny", "levit_128s"])
def test_networks_for_images_of_one_size_are_named(name: str) -> None:
    backbone = backbones.create(backbones.plan(name, 96, 3, MEAN, STD)).train()
    with pytest.raises(SelfsightError, match=rf"--backbone {name}: takes no images of 96 pixels \(.*\); try"):
        backbones.check(backbone)
    backbone = backbones.create(backbones.plan(name, 224, 3, MEAN, STD)).train()
    assert backbones.check(backbone) is backbone
    assert backbone.training


@pytest.mark.parametrize(("name", "size", "least"), [("test_resnet", 15, 16), ("convnext_atto", 28, 32)])
def test_images_too_small_for_the_network_are_named(name: str, size: int, least: int) -> None:
    with pytest.raises(SelfsightError, match=f"--image-size {size}: .* use --image-size {least} or larger"):
        backbones.create(backbones.plan(name, size, 3, MEAN, STD))


@pytest.mark.parametrize("name", ["pointer.safetensors", "cut.safetensors", "list.pth"])
def test_files_without_weights_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "list.pth":
        torch.save([torch.zeros(3)], file)
    else:
        save_file({"a": torch.zeros(100)}, file)
        file.write_bytes(b"version https://git-lfs" if "pointer" in name else file.read_bytes()[:-40])
    with pytest.raises(SelfsightError, match=f"--pretrained .*{name}: (damaged|holds no weights)"):
        backbones.read_weights(file)
