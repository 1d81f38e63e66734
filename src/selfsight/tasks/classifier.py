"""Classifiers: heads on a backbone's features, and how good and how honest their answers are.

Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
    binary_f1_score,
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
)

from selfsight.backbones import Backbone
from selfsight.evaluate.knn import MOST, neighbours, votes
from selfsight.evaluate.linear import Probe, fit_probe
from selfsight.run import replace_file, write_table
from selfsight.tasks.model import TaskModel


class KnnHead(nn.Module):
    """The vote of the nearest labelled images, as logits (B, K) of features (B, D)."""

    bank: Tensor
    targets: Tensor

    def __init__(self, bank: Tensor, targets: Tensor, many: bool) -> None:
        """Remember features (N, D) and their classes (N, K), 1 or 0; `many` if an image may have several."""
        super().__init__()
        self.register_buffer("bank", F.normalize(bank, dim=1))
        self.register_buffer("targets", targets.float())
        self.many = many
        self.k = neighbours(targets.argmax(1).numpy(), MOST)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits whose softmax (sigmoid, of several classes) is each class's share of the votes."""
        share = votes(features, self.bank, self.targets, self.k).clamp(1e-6, 1 - 1e-6)
        return share.logit() if self.many else share.log()


class Classifier(TaskModel):
    """A backbone and a head on its features; a temperature makes its confidences honest."""

    temperature: Tensor

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, S, S) in [0, 1]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits / self.temperature


def fit_probes(x: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[np.int64] | None = None) -> Probe:
    """Return one linear probe for features (N, D) and K classes that don't exclude each other, `y` (N, K) 0 or 1."""
    each = [fit_probe(x, y[:, k], 2, groups=groups) for k in range(y.shape[1])]
    weight = np.stack([probe.weight[1] - probe.weight[0] for probe in each])
    bias = np.array([probe.bias[1] - probe.bias[0] for probe in each], np.float32)
    return Probe(each[0].mean, each[0].std, weight, bias, math.nan)


def classification_scores(logits: Tensor, targets: Tensor, classes: Sequence[str], many: bool) -> dict[str, float]:
    """Return the scores, each 0 to 1, of logits (N, K) against targets (N, K) of 0 and 1.

    One class an image: accuracy, balanced_accuracy and f1 (means over classes), calibration_error (the expected one,
    of 15 bins), and recall:NAME of each class; of more than ten classes also top5_accuracy, the share of images whose
    class is among the five likeliest. Several: mean_average_precision, f1 of all answers at a confidence of
    0.5, calibration_error, and precision:NAME, a class's average precision.
    """
    count = len(classes)
    if many:
        answer, truth = logits.sigmoid(), targets.long()
        shown = [k for k in range(count) if bool(truth[:, k].any())]
        each = {k: float(binary_average_precision(answer[:, k], truth[:, k])) for k in shown}
        return {
            "mean_average_precision": sum(each.values()) / max(len(each), 1),
            "f1": float(binary_f1_score(answer.flatten(), truth.flatten())),
            "calibration_error": float(binary_calibration_error(answer.flatten(), truth.flatten())),
            **{f"precision:{classes[k]}": value for k, value in each.items()},
        }
    answer, truth = logits.softmax(1), targets.argmax(1)
    recall = multiclass_recall(answer, truth, count, average="none")
    occurs = truth.bincount(minlength=count) > 0
    ranks = {"accuracy": 1} | ({"top5_accuracy": 5} if count > 10 else {})
    return {
        **{name: float(multiclass_accuracy(answer, truth, count, "micro", k)) for name, k in ranks.items()},
        "balanced_accuracy": float(recall[occurs].mean()),
        "f1": float(multiclass_f1_score(answer, truth, count)),
        "calibration_error": float(multiclass_calibration_error(answer, truth, count)),
        **{f"recall:{classes[k]}": float(recall[k]) for k in range(count) if occurs[k]},
    }


def best_temperature(logits: Tensor, targets: Tensor, many: bool) -> float:
    """Return the T > 0 by which the likelihood of `targets` (N, K) under logits / T is greatest, 0.1 to 10.

    The targets are taken as if one more image than there are had any answer, after Platt 1999 ("Probabilistic Outputs
    for Support Vector Machines"): of images that are all right, the sharpest answers would be the likeliest.
    """
    logits, chance = logits.double(), 0.5 if many else 1 / targets.shape[1]
    targets = targets.double().lerp(torch.full_like(targets, chance, dtype=torch.double), 1 / (len(targets) + 1))

    def surprise(log_t: float) -> float:
        scaled = logits / math.exp(log_t)
        if many:
            return float(F.binary_cross_entropy_with_logits(scaled, targets))
        return float(F.cross_entropy(scaled, targets))

    found = minimize_scalar(surprise, bounds=(-math.log(10), math.log(10)), method="bounded")
    return math.exp(float(found.x))


def write_confusion(folder: Path, truth: NDArray[np.int64], answer: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Write confusion.csv, counts with a row for each true class, and confusion.png, each row's shares."""
    counts = confusion_matrix(truth, answer, labels=range(len(classes)))
    rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
    write_table(folder / "confusion.csv", ["true \\ predicted", *classes], rows)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(classes) <= 20
    side = min(3 + 0.45 * len(classes), 16)
    figure = Figure((side, side), layout="constrained")
    display = ConfusionMatrixDisplay(shares, display_labels=[name.replace("$", r"\$") for name in classes])
    display.plot(
        ax=figure.subplots(),
        include_values=few,
        values_format=".2f",
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
    )
    replace_file(folder / "confusion.png", lambda p: figure.savefig(p, format="png", dpi=110))
