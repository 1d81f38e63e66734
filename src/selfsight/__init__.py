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
    from selfsight.search import DuplicateConfig, Index, Where
    from selfsight.tasks.classification import ClassificationConfig
    from selfsight.tasks.curve import TrainConfig, default_learning
    from selfsight.tasks.jobs import DetectionConfig, SegmentationConfig
    from selfsight.tasks.learning import LearnConfig
    from selfsight.tasks.predict import PredictConfig, predict
    from selfsight.training import Pretrain

__all__ = [
    "ClassificationConfig",
    "DetectionConfig",
    "DuplicateConfig",
    "Embedding",
    "EvaluateConfig",
    "Index",
    "LearnConfig",
    "PredictConfig",
    "Pretrain",
    "Run",
    "SegmentationConfig",
    "SelfsightError",
    "TrainConfig",
    "Where",
    "default_learning",
    "load",
    "open_images",
    "predict",
    "pretrain",
]
__version__ = "0.1.0"

_HOMES = {
    "ClassificationConfig": "tasks.classification",
    "DetectionConfig": "tasks.jobs",
    "DuplicateConfig": "search",
    "Embedding": "embed",
    "EvaluateConfig": "evaluate.curve",
    "Index": "search",
    "LearnConfig": "tasks.learning",
    "PredictConfig": "tasks.predict",
    "Pretrain": "training",
    "Run": "api",
    "SegmentationConfig": "tasks.jobs",
    "SelfsightError": "errors",
    "TrainConfig": "tasks.curve",
    "Where": "search",
    "default_learning": "tasks.curve",
    "load": "api",
    "open_images": "data",
    "predict": "tasks.predict",
    "pretrain": "api",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: torch and Lightning take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'selfsight' has no attribute {name!r}")
    return getattr(importlib.import_module(f"selfsight.{_HOMES[name]}"), name)
