"""Heads, scores and calibration of classifiers, beside plain counting and scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from selfsight.tasks.classifier import KnnHead, best_temperature, classification_scores, fit_probes, write_confusion


def test_votes_become_confidences() -> None:
    bank = torch.eye(4).repeat_interleave(5, 0)
    targets = torch.eye(2)[[0] * 10 + [1] * 10]
    head = KnnHead(bank, targets, many=False)
    assert head(torch.eye(4)).softmax(1)[:, 0].tolist() == pytest.approx([1, 1, 0, 0], abs=1e-3)
    both = KnnHead(bank, torch.ones(20, 2), many=True)
    assert both(torch.eye(4)).sigmoid().min() > 0.99, "neighbours of both classes vote for both"


def test_one_probe_a_class_is_that_of_sklearn() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 6)).astype(np.float32)
    y = (x[:, :3] + generator.normal(size=(200, 3)) > 0).astype(np.int64)
    probe = fit_probes(x, y)
    z = (x - probe.mean) / probe.std
    logits = probe.logits(x)
    for k in range(3):
        best = max(
            (
                LogisticRegression(C=2 * c, max_iter=1000, tol=1e-6).fit(z, y[:, k])
                for c in 10.0 ** np.arange(-5, 2, 0.5)
            ),
            key=lambda model: np.corrcoef(model.decision_function(z), logits[:, k])[0, 1],
        )
        assert np.abs(best.decision_function(z) - logits[:, k]).max() < 0.02


def test_scores_are_those_of_plain_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    scores = classification_scores(logits, torch.eye(4)[truth], "abcd", many=False)
    answer, sure = logits.argmax(1), logits.softmax(1).max(1).values
    assert scores["accuracy"] == pytest.approx(float((answer == truth).float().mean()))
    recalls = [float((answer[truth == k] == k).float().mean()) for k in range(3)]
    assert scores["balanced_accuracy"] == pytest.approx(sum(recalls) / 3), "the class that no image has doesn't count"
    assert scores["recall:b"] == pytest.approx(recalls[1])
    assert "recall:d" not in scores
    error = 0.0
    for low in range(15):
        inside = (sure > low / 15) & (sure <= (low + 1) / 15)
        if inside.any():
            error += float(
                inside.float().mean() * ((answer == truth)[inside].float().mean() - sure[inside].mean()).abs()
            )
    assert scores["calibration_error"] == pytest.approx(error, abs=1e-5)
    assert "top5_accuracy" not in scores
    logits, truth = torch.randn(60, 12, generator=generator), torch.randint(12, (60,), generator=generator)
    found = classification_scores(logits, torch.eye(12)[truth], "abcdefghijkl", many=False)["top5_accuracy"]
    above = (logits > logits.gather(1, truth[:, None])).sum(1)
    assert found == pytest.approx(float((above < 5).float().mean()))
    logits = logits[:, :4]
    many = (torch.rand(60, 4, generator=generator) < 0.3).float()
    scores = classification_scores(logits, many, "abcd", many=True)
    each = average_precision_score(many.numpy(), logits.sigmoid().numpy(), average=None)
    assert scores["mean_average_precision"] == pytest.approx(float(each.mean()), abs=1e-5)
    assert scores["precision:c"] == pytest.approx(float(each[2]), abs=1e-5)


@pytest.mark.parametrize("many", [False, True])
def test_the_temperature_makes_confidences_honest(many: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 3, generator=generator) * 1.5
    if many:
        targets = (torch.rand(4000, 3, generator=generator) < honest.sigmoid()).float()
    else:
        targets = torch.eye(3)[honest.softmax(1).multinomial(1, generator=generator)[:, 0]]
    assert best_temperature(3 * honest, targets, many) == pytest.approx(3, rel=0.1)
    scores = [
        classification_scores(logits, targets, "abc", many)["calibration_error"] for logits in (3 * honest, honest)
    ]
    assert scores[0] > 3 * scores[1]


@pytest.mark.parametrize("many", [False, True])
def test_images_that_are_all_right_make_no_confidence_absolute(many: bool) -> None:
    """Ever sharper answers would be ever likelier: of a hundred images one might still be wrong."""
    targets = torch.eye(3)[torch.arange(100) % 3]
    logits = (targets - 0.5) * (4 + torch.rand(100, 1, generator=torch.Generator().manual_seed(0)))
    scaled = logits / best_temperature(logits, targets, many)
    sure = (scaled.sigmoid() if many else scaled.softmax(1))[targets > 0]
    assert 0.98 < float(sure.mean()) < 0.996


def test_class_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    write_confusion(tmp_path, np.array([0, 1]), np.array([0, 1]), ["$0_$50", "$50_$100"])
    assert (tmp_path / "confusion.png").exists()
