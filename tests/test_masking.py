"""Masks hide as much as asked, in the shapes asked; a ViT that misses patches knows nothing of them."""

import pytest
import torch
from torch import Tensor

from selfsight import backbones
from selfsight.backbones import Backbone
from selfsight.errors import SelfsightError
from selfsight.masking import (
    MaskedDecoder,
    blocks,
    embed,
    encode,
    grid_of,
    patchify,
    placed,
    scattered,
    take,
    the_vit,
    unpatchify,
    where,
    without,
)
from tests.methods import vits

CPU = torch.device("cpu")


def a_vit(mean_tokens: bool = False, size: int = 32) -> Backbone:
    torch.manual_seed(0)
    spec = backbones.plan("test_vit", size, 3, (0.5,) * 3, (0.25,) * 3, mean_tokens=mean_tokens)
    return backbones.create(spec).eval()


def test_scattered_patches_are_as_many_of_each_image_and_everywhere() -> None:
    hidden = scattered(200, 64, 0.75, CPU)
    assert (hidden.sum(1) == 48).all()
    assert (hidden.float().mean(0) - 0.75).abs().max() < 0.15
    assert len({tuple(row.tolist()) for row in hidden}) == 200


def test_blocks_hide_the_share_asked_of_each_image_in_few_pieces() -> None:
    ratio = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9]).repeat(20)
    hidden = blocks(ratio, 12, CPU)
    assert hidden.sum(1).tolist() == [round(r * 144) for r in ratio.tolist()]

    def borders(mask: Tensor) -> float:
        grid = mask.view(-1, 12, 12)
        return float((grid[:, 1:] != grid[:, :-1]).float().mean() + (grid[:, :, 1:] != grid[:, :, :-1]).float().mean())

    half = ratio == 0.5
    assert borders(hidden[half]) < 0.6 * borders(scattered(20, 144, 0.5, CPU)), "not scattered"


def test_a_rectangle_is_as_large_as_asked_and_within_the_grid() -> None:
    height, width = torch.tensor([3.0, 1, 99]), torch.tensor([2.0, 8, 99])
    for _ in range(20):
        inside = placed(height, width, 8).view(3, 8, 8)
        assert inside.sum((1, 2)).tolist() == [6, 8, 64]
        rows, columns = inside[0].any(1).nonzero()[:, 0], inside[0].any(0).nonzero()[:, 0]
        assert (len(rows), len(columns)) == (3, 2)
        assert int(rows[-1] - rows[0]) == 2


def test_patches_are_put_together_again() -> None:
    x = torch.rand(2, 3, 32, 32)
    patches = patchify(x, 8)
    assert torch.equal(patches[1, 10].view(3, 4, 4), vits.patch(x[1], 10, 8))
    assert torch.equal(unpatchify(patches, 32), x)


def test_tokens_are_those_of_a_plain_vit() -> None:
    backbone, x = a_vit(), torch.rand(2, 3, 32, 32)
    hidden, token = scattered(2, 64, 0.5, CPU), torch.randn(backbone.dim)
    assert torch.allclose(encode(backbone, x), vits.slow_tokens(backbone, x), atol=1e-4)
    slow = vits.slow_tokens(backbone, x, hidden, token)
    assert torch.allclose(encode(backbone, x, hidden=hidden, token=token), slow, atol=1e-4)
    assert torch.allclose(embed(backbone, x), vits.slow_start(backbone, x), atol=1e-4)
    assert torch.allclose(backbone.pool(encode(backbone, x)), backbone(x), atol=1e-5)
    mean = a_vit(mean_tokens=True)
    assert torch.allclose(mean(x), encode(mean, x)[:, 1:].mean(1), atol=1e-5)
    assert not torch.allclose(mean(x), backbone(x), atol=1e-3)


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_hidden_does_not_leak(kept: bool) -> None:
    backbone, x = a_vit(), torch.rand(2, 3, 32, 32)
    hidden = scattered(2, 64, 0.5, CPU)
    other = torch.where(without(torch.zeros_like(x), hidden, 1.0) > 0, torch.rand_like(x), x)
    assert not torch.equal(other, x)
    how = {"kept": where(~hidden)} if kept else {"hidden": hidden, "token": torch.zeros(backbone.dim)}
    assert torch.equal(encode(backbone, x, **how), encode(backbone, other, **how))
    seen = torch.where(without(torch.zeros_like(x), hidden, 1.0) > 0, x, torch.rand_like(x))
    assert not torch.allclose(encode(backbone, x, **how), encode(backbone, seen, **how), atol=1e-3)


def test_the_decoder_knows_where_what_it_sees_is_and_where_it_is_asked() -> None:
    torch.manual_seed(0)
    decoder = MaskedDecoder(16, 32, 2, 4, 5).eval()
    tokens, kept, asked = torch.randn(1, 3, 16), torch.tensor([[0, 5, 9]]), torch.tensor([[1, 2]])
    answer = decoder(tokens, kept, asked)
    assert answer.shape == (1, 2, 5)
    assert not torch.allclose(answer[:, 0], answer[:, 1], atol=1e-3), "two places, one answer"
    turned = decoder(tokens[:, [2, 0, 1]], kept[:, [2, 0, 1]], asked)
    assert torch.allclose(answer, turned, atol=1e-5), "in whatever order"
    assert not torch.allclose(answer, decoder(tokens, kept + 1, asked), atol=1e-3)
    assert torch.equal(take(tokens, torch.tensor([[2, 0]])), tokens[:, [2, 0]])


def test_other_networks_are_named() -> None:
    resnet = backbones.create(backbones.plan("test_resnet", 32, 3, (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(SelfsightError, match=r"--backbone test_resnet: .*vit_tiny_patch16_224"):
        the_vit(resnet)
    assert grid_of(a_vit()) == 8
