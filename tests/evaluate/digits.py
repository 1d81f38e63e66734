"""Small real images for the tests: scikit-learn's 8 x 8 digits, and a backbone small enough for them."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from selfsight.backbones import Backbone, BackboneSpec, create
from selfsight.data.images import ImageSet

CPU = torch.device("cpu")
SPEC = BackboneSpec("test_resnet", 16, 1, (0.3,), (0.38,), small_stem=True)


def digits(n: int = 600, split: bool = True, channels: int = 1) -> ImageSet:
    """Return the first n digits as 16 x 16 images; every third is test."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels[:n].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return ImageSet(
        source="digits",
        images=pixels.repeat(channels, axis=1).repeat(2, axis=2).repeat(2, axis=3),
        aspect=np.ones(n, np.float32),
        names=[f"train/{i}" for i in range(n)],
        labels=labels[:n].astype(np.int64),
        classes=[str(c) for c in range(10)],
        split=np.where(np.arange(n) % 3 == 0, "test", "train") if split else None,
    )


def backbone(seed: int = 0) -> Backbone:
    """Return a tiny untrained network."""
    torch.manual_seed(seed)
    return create(SPEC)
