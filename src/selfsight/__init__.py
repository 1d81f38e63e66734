"""selfsight: self-supervised learning on your own images.

import selfsight

run = selfsight.pretrain("photos/", method="simclr", minutes=10)
run.embed("photos/").save(Path("photos.npz"))
run.evaluate("labeled/")
run = selfsight.load("runs/photos-simclr")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfsight.api import Run, load, pretrain
    from selfsight.data import open_images
    from selfsight.embed import Embedding
    from selfsight.errors import SelfsightError
    from selfsight.evaluate.curve import EvaluateConfig
    from selfsight.training import Pretrain

__all__ = ["Embedding", "EvaluateConfig", "Pretrain", "Run", "SelfsightError", "load", "open_images", "pretrain"]
__version__ = "0.1.0"

_HOMES = {
    "Embedding": "embed",
    "EvaluateConfig": "evaluate.curve",
    "Pretrain": "training",
    "Run": "api",
    "SelfsightError": "errors",
    "load": "api",
    "open_images": "data",
    "pretrain": "api",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: torch and Lightning take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'selfsight' has no attribute {name!r}")
    return getattr(importlib.import_module(f"selfsight.{_HOMES[name]}"), name)
