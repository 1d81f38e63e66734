import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from selfsight.evaluate.linear import ONE_SHOT, STRENGTHS, Probe, fit_probe, folds, rotate, scale, solve


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y


@pytest.mark.parametrize("rows", [40, 600])  # fewer and more rows than dimensions
@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0])
def test_the_optimum_is_sklearns(
    digits: tuple[NDArray[np.float32], NDArray[np.int64]], rows: int, strength: float
) -> None:
    x, y = digits[0][:rows], digits[1][:rows]
    mean, std = scale(x)
    x = (x - mean) / std
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x.astype(np.float64), y)
    z, axes, spread = rotate(torch.from_numpy(x))
    answer = solve(z, torch.from_numpy(y), 10, strength, spread)
    assert np.abs((axes @ answer[:-1]).T.numpy() - reference.coef_).max() < 3e-3 * max(1, np.abs(reference.coef_).max())
    probability = (z @ answer[:-1] + answer[-1]).softmax(1).numpy()
    assert np.abs(probability - reference.predict_proba(x)).max() < 1e-3


def test_rotation_keeps_distances_and_can_be_undone() -> None:
    for shape in [(50, 8), (8, 50)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        z, axes, spread = rotate(x)
        assert torch.allclose(z @ axes.T, x, atol=1e-4)
        assert torch.allclose(z.square().mean(0), spread, rtol=1e-3)


def test_the_chosen_strength_fits_the_data(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    x, y = digits
    probe = fit_probe(x[:900], y[:900], 10)
    best = max(
        LogisticRegression(C=c, max_iter=3000)
        .fit((x[:900] - probe.mean) / probe.std, y[:900])
        .score((x[900:] - probe.mean) / probe.std, y[900:])
        for c in (1e-3, 1e-2, 1e-1)
    )
    assert (probe.predict(x[900:]) == y[900:]).mean() > best - 0.01
    # Labels without any relation to the features: the strongest regularization that was tried is as good as any.
    noise = fit_probe(x[:900], np.random.default_rng(0).permutation(y[:900]), 10)
    assert noise.strength < probe.strength


def test_a_given_strength_is_taken(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    x, y = digits
    probe = fit_probe(x[:300], y[:300], 10, strength=1e-4)
    assert probe.strength == 1e-4
    assert np.abs(probe.weight).sum() < np.abs(fit_probe(x[:300], y[:300], 10, strength=1.0).weight).sum() / 3


def test_test_rows_do_not_change_the_probe(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    x, y = digits
    probe = fit_probe(x[:50], y[:50], 10)
    assert np.allclose(probe.mean, x[:50].mean(0), atol=1e-4)
    alone = probe.predict(x[50:51])
    assert alone[0] == probe.predict(x[50:])[0]


def test_missing_classes_are_never_predicted(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    x, y = digits
    few = np.flatnonzero(np.isin(y, [2, 5, 7]))
    probe = fit_probe(x[few[:30]], y[few[:30]], 10)
    assert set(probe.predict(x)) == {2, 5, 7}
    assert (probe.predict(x[few]) == y[few]).mean() > 0.9
    assert np.isfinite(probe.logits(x)).all()


def test_one_label_a_class(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    x, y = digits
    rows = np.array([int(np.flatnonzero(y == c)[0]) for c in range(10)])
    probe = fit_probe(x[rows], y[rows], 10)
    assert probe.strength == ONE_SHOT
    assert (probe.predict(x) == y).mean() > 0.4
    only = fit_probe(x[rows[3:4]], y[rows[3:4]], 10)
    assert set(only.predict(x)) == {3}


def test_constant_features_do_no_harm(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    x, y = digits
    padded = np.concatenate([x, np.full((len(x), 3), 5, np.float32)], 1)
    same = fit_probe(padded[:200], y[:200], 10).predict(padded) == fit_probe(x[:200], y[:200], 10).predict(x)
    assert same.mean() > 0.99
    constant = fit_probe(np.ones((20, 4), np.float32), y[:20], 10)
    assert np.isfinite(constant.logits(np.ones((2, 4), np.float32))).all()


def test_folds_are_even_within_each_class() -> None:
    y = torch.tensor([0] * 20 + [1] * 10 + [2])
    fold = folds(y, 0)
    assert fold is not None
    for c, share in ((0, 4), (1, 2)):
        assert fold[y == c].bincount(minlength=5).tolist() == [share] * 5
    assert folds(torch.arange(10), 0) is None
    groups = np.arange(len(y)) // 7
    fold = folds(y, 0, groups)
    assert fold is not None
    assert all(len(fold[torch.from_numpy(groups == group)].unique()) == 1 for group in np.unique(groups))
    assert len(fold.unique()) == 5
    assert folds(y, 0, np.zeros(len(y), np.int64)) is None, "one patient tells nothing of others"


def test_few_looks_at_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All strengths and the fit take 102 together; 136 where the run-up to the last fit is as exact as that itself."""
    looks = 0
    product = F.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal looks
        looks += 1
        return product(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 3000)
    x = (rng.normal(size=(3000, 256)) + rng.normal(size=(10, 256))[y] * 0.3).astype(np.float32)
    probe: Probe = fit_probe(x, y, 10)
    assert probe.strength in STRENGTHS
    assert 0 < looks < 120
