import pytest
import torch

from selfsight.methods.wmse import whiten


@pytest.mark.parametrize("scale", [1.0, 300.0, 1e4])
def test_whitened_features_are_not_correlated_however_large_they_were(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(32, 32, generator=generator)
    white = whiten(scale * (torch.randn(128, 32, generator=generator) @ mixing + 3))
    assert torch.allclose(white.mean(0), torch.zeros(32), atol=1e-3)
    assert torch.allclose(white.T @ white / 127, torch.eye(32), atol=0.05)


def test_a_batch_of_fewer_images_than_features_is_whitened_as_far_as_it_goes() -> None:
    z = 1e3 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    white = whiten(z)
    white.square().sum().backward()
    assert torch.isfinite(white).all()


def test_whitening_is_exact_within_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(128, 64, generator=generator) @ torch.randn(64, 64, generator=generator) * 30
    with torch.autocast("cpu", torch.bfloat16):
        white = whiten(z)
    assert torch.equal(white, whiten(z))
