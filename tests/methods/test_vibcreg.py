"""VIbCReg's features are whitened in groups, far enough that each may have the variance which the loss asks for."""

import pytest
import torch
from torch import Tensor

from selfsight.backbones import create, plan
from selfsight.errors import SelfsightError
from selfsight.methods.vibcreg import VIbCReg, iterative_norm
from selfsight.nn import spread
from tests.methods.references import newton_whitened


def mixed(features: int, images: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator) / features**0.5 + torch.eye(features)
    features_of: Tensor = torch.randn(images, features, generator=generator) @ mixing + 3
    return features_of


def test_groups_of_32_are_whitened_each_by_itself() -> None:
    z = mixed(64).double()
    expected = torch.cat([newton_whitened(z[:, :32]), newton_whitened(z[:, 32:])], 1)
    assert torch.allclose(iterative_norm(z), expected, atol=1e-9)


@pytest.mark.parametrize("features", [512, 2048])
def test_however_many_features_each_keeps_most_of_its_variance(features: int) -> None:
    z = mixed(features)
    assert float(spread(iterative_norm(z))) < 0.15
    assert float(spread(newton_whitened(z))) > 0.5, "all together would not"


def test_whitening_is_exact_within_autocast() -> None:
    z = mixed(64)
    with torch.autocast("cpu", torch.bfloat16):
        white = iterative_norm(z)
    assert torch.equal(white, iterative_norm(z))


def test_a_rest_of_features_is_refused() -> None:
    spec = plan("test_resnet", 32, 3, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(SelfsightError, match=r"--dim 1000: .* multiple of 32"):
        VIbCReg(create(spec), VIbCReg.Config(dim=1000))
