"""A small gallery of real pictures for the tests: crops of a photo, ten each of four places."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from selfsight.api import Run
from selfsight.backbones import create, plan
from selfsight.gallery.serve import open_gallery
from selfsight.gallery.state import Gallery
from selfsight.run import RunFolder


def make_run(folder: Path) -> Run:
    """An untrained backbone in a run folder, as a pretraining leaves it."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    run.write_config({"method": "simclr", "data": "nothing"})
    run.save_backbone(create(plan("test_resnet", 32, 3, (0.5,) * 3, (0.25,) * 3)))
    return Run(run)


def make_photos(folder: Path, photo: NDArray[np.uint8], n: int = 40) -> Path:
    random = np.random.default_rng(0)
    corners = [(0, 0), (0, 500), (320, 0), (320, 500)]
    for i in range(n):
        top, left = corners[i % 4]
        y, x = top + random.integers(0, 40), left + random.integers(0, 70)
        file = folder / "abcd"[i % 4] / f"{i:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[y : y + 64, x : x + 70]).save(file)
    return folder


@contextmanager
def small_gallery(folder: Path, photo: NDArray[np.uint8], n: int = 40) -> Iterator[Gallery]:
    gallery = open_gallery(make_run(folder / "run"), str(make_photos(folder / "photos", photo, n)))
    try:
        yield gallery
    finally:
        gallery.close()
