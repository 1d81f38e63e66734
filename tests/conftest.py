"""Shared by all tests: small real images, one or two threads, a cache of their own."""

import functools
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images
from sklearn.manifold import TSNE
from torch import Tensor


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """More threads than cores make small models slower."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def quick_collections() -> None:
    """Let Python's collector pass over what imports made, half a million objects: it would look at them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images go to a folder of this test session."""
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health is measured twice in a training, not ten times: where something else is tested."""
    monkeypatch.setattr("selfsight.watch.CHECKS", 2)


@pytest.fixture
def quick_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's map after a quarter of the steps, which take longer than all else of it: where nobody looks."""
    monkeypatch.setattr("selfsight.report.similar.TSNE", functools.partial(TSNE, max_iter=250))


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of torch's fused attention from now on, whether it was for a gradient."""
    calls: list[bool] = []
    attention: Any = F.scaled_dot_product_attention

    def noted(*tensors: Tensor, **settings: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        found: Tensor = attention(*tensors, **settings)
        return found

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return calls


@pytest.fixture(scope="session")
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """1,797 handwritten digits of 8 x 8 pixels, doubled to 16 x 16, and their labels."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    return pixels.repeat(2, axis=1).repeat(2, axis=2), np.asarray(labels, np.int64)


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory, digits: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Path:
    """The digits as an .npz."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=digits[0], labels=digits[1])
    return path


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A colour photo, (427, 640, 3)."""
    return np.asarray(load_sample_images().images[0], np.uint8)
