"""Embed: one feature vector an image, and the files that other tools read them from."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.backbones import Backbone
from selfsight.data import ImageSet
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import extract
from selfsight.run import replace_file


@dataclass(frozen=True)
class Embedding:
    """Feature vectors of images, in the order of the data set."""

    names: Sequence[str]
    """(N,) path relative to the data set's folder, or 'train/17' for array data."""
    files: Sequence[str] | None
    """(N,) absolute paths, or None for array data."""
    labels: Sequence[str]
    """(N,) class names, '' where unknown."""
    features: NDArray[np.float32]
    """(N, D)."""

    @property
    def paths(self) -> Sequence[str]:
        """(N,) the absolute paths, or the names for array data."""
        return self.names if self.files is None else self.files

    def save(self, path: Path) -> Path:
        """Write .npz (features, names, labels), .csv (path, label, f0, f1, ...) or .parquet (path, label, features).

        The file is whole or not there at all. SelfsightError for another suffix.
        """
        require_writable(path)
        replace_file(path, partial(WRITERS[path.suffix], self))
        return path

    def _write_npz(self, path: Path) -> None:
        np.savez(
            path, features=self.features, names=np.array(self.names, np.str_), labels=np.array(self.labels, np.str_)
        )

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", *(f"f{i}" for i in range(self.features.shape[1]))])
            for name, label, row in zip(self.paths, self.labels, self.features, strict=True):
                writer.writerow([name, label, *row.astype(np.str_)])  # float32's shortest text that reads back the same

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa  # only now: it takes a while to load
        import pyarrow.parquet as pq

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.features.ravel()), self.features.shape[1])
        pq.write_table(pa.table({"path": list(self.paths), "label": list(self.labels), "features": vectors}), path)


WRITERS = {".npz": Embedding._write_npz, ".csv": Embedding._write_csv, ".parquet": Embedding._write_parquet}


def require_writable(path: Path) -> None:
    """Raise SelfsightError where an embedding can't be written to a file of this name."""
    if path.suffix not in WRITERS:
        raise SelfsightError(f"--out {path}: cannot write '{path.suffix}'; use one of {', '.join(WRITERS)}")


def embed(backbone: Backbone, images: ImageSet, device: torch.device) -> Embedding:
    """Return the features of the centre view of every image."""
    backbone = backbone.to(device)
    features = extract(backbone, images, np.arange(len(images)), device=device)
    return Embedding(images.names, images.files, class_names(images), features)


def class_names(images: ImageSet) -> list[str]:
    """Return the (N,) class names, '' where the label is unknown."""
    if images.labels is None:
        return [""] * len(images)
    return [images.classes[i] if i >= 0 else "" for i in images.labels]
