r"""Retrieval: is the nearest image the same thing in another style, and are the nearest ten of the same category?

    python benchmarks/retrieval.py RUN EMOJI --group '_(.+)\.'

Each image is a query among all others. Beside the run's embedding: raw pixels at 16 x 16 and at 32 x 32, and the run's
network untrained. The group, what the parentheses find in a file's name, says which images are the same thing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import selfsight
from selfsight.evaluate.features import extract, pixels
from selfsight.search.index import nearest, unit


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: tyro.conf.Positional[Path]
    """Images in a folder a category."""
    group: str = r"_(.+)\."
    """Regular expression with one pair of parentheses, searched in each file's name."""


def scores(vectors: NDArray[np.float32], groups: list[str], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the share of images whose first neighbour is of their group, and precision@10 by category."""
    matrix, same = unit(vectors), np.array(groups)
    first, tens = [], []
    several = np.array([groups.count(group) > 1 for group in groups])
    for start in range(0, len(matrix), 512):
        rows = np.arange(start, min(start + 512, len(matrix)))
        similarities = matrix[rows] @ matrix.T
        similarities[np.arange(len(rows)), rows] = -2
        found = nearest(similarities, 10)
        first += (same[found[:, 0]] == same[rows])[several[rows]].tolist()
        tens += (labels[found] == labels[rows][:, None]).mean(1).tolist()
    return float(np.mean(first)), float(np.mean(tens))


def main(asked: Arguments) -> None:
    run = selfsight.load(asked.run)
    images = run.images(str(asked.data))
    rows = np.arange(len(images))
    groups = [m[1] if (m := re.search(asked.group, Path(name).name)) else name for name in images.names]
    labels = images.require_labels()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    contestants = {
        run.method: extract(run.backbone().to(device), images, rows, device=device),
        "untrained": extract(run.folder.random_backbone().to(device), images, rows, device=device),
        "pixels, 16 x 16": centred(pixels(images, rows, 16)),
        "pixels, 32 x 32": centred(pixels(images, rows, 32)),
    }
    table = Table("embedding", "other style first", "precision@10 by category")
    for name, vectors in contestants.items():
        first, ten = scores(vectors, groups, labels)
        table.add_row(name, f"{first:.3f}", f"{ten:.3f}")
    Console().print(table)


def centred(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pixels less the mean image: by the cosine of what is left images are told apart best."""
    less: NDArray[np.float32] = x - x.mean(0)
    return less


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
