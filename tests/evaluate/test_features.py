import numpy as np
import pytest
import torch

from selfsight.data.images import ImageSet
from selfsight.evaluate.features import extract, pixels
from tests.evaluate.digits import CPU, backbone, digits


def test_features_follow_the_rows_and_not_the_batches() -> None:
    images, net = digits(50), backbone()
    x = extract(net, images, np.arange(50), device=CPU)
    assert x.shape == (50, net.dim)
    assert x.dtype == np.float32
    rows = np.array([31, 4, 4, 17])
    # bfloat16 rounds differently in batches of another size.
    assert np.allclose(extract(net, images, rows, device=CPU, batch_size=3), x[rows], atol=0.02 * np.abs(x).max())
    with pytest.raises(ValueError, match="no rows"):
        extract(net, images, rows[:0], device=CPU)


def test_extracting_changes_nothing_in_the_network() -> None:
    net = backbone().train()
    net.model.bn1.eval()  # one part frozen by the caller
    before = {name: value.clone() for name, value in net.state_dict().items()}
    extract(net, digits(20), np.arange(20), device=CPU)
    assert net.training
    assert not net.model.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_mode_is_restored_after_an_error() -> None:
    net = backbone().train()
    with pytest.raises(RuntimeError, match="channels"):
        extract(net, digits(4, channels=2), np.arange(4), device=CPU)
    assert net.training


def test_pixels_are_the_images() -> None:
    images = digits(10)
    x = pixels(images, np.array([3, 5]), 16)
    assert np.allclose(x, images.images[np.array([3, 5])].reshape(2, -1) / 255, atol=0.005)


@pytest.mark.parametrize(("channels", "size", "length"), [(3, 96, 3072), (3, 32, 3072), (1, 28, 784), (4, 64, 1024)])
def test_pixels_of_large_images_are_scaled_down(channels: int, size: int, length: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, channels, 64, 64), np.uint8)
    images = ImageSet("noise", noise, np.ones(2, np.float32), ["a", "b"])
    assert pixels(images, np.arange(2), size).shape == (2, length)
