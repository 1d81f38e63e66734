import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from scipy import stats

from selfsight.evaluate.results import (
    Row,
    amount_words,
    append_row,
    by_amount,
    draw_curve,
    labels_words,
    plot_curve,
    print_table,
    read_rows,
    summary,
)


def row(method: str, labels: float | int, seed: int, value: float, protocol: str = "linear") -> Row:
    return Row("run", method, "data", "classification", protocol, labels, seed, "accuracy", value, 0.5)


ROWS = [
    row(method, labels, seed, base + gain * labels + 0.01 * seed)
    for method, base, gain in (("simclr", 0.7, 0.1), ("pixels", 0.5, 0.3))
    for labels in (0.01, 0.1, 1.0)
    for seed in range(3 if labels < 1 else 1)
]


def test_rows_survive_the_file_and_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    assert read_rows(path) == []
    append_row(path, ROWS[0])
    with path.open("a") as f:
        f.write('{"run": "cut o')
    append_row(path, ROWS[1])
    assert read_rows(path) == ROWS[:2]
    again = row("simclr", 0.01, 0, 0.9)
    append_row(path, again)
    assert read_rows(path) == [again, ROWS[1]]


def test_all_labels_and_one_per_class_are_different_results(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for labels in (1.0, 1):
        append_row(path, row("simclr", labels, 0, 0.5))
    assert [amount_words(r.labels) for r in read_rows(path)] == ["100 %", "1 per class"]
    assert len(summary(read_rows(path))) == 2
    assert [amount_words(f) for f in (0.01, 0.1, 0.005)] == ["1 %", "10 %", "0.5 %"]


def test_the_interval_is_students() -> None:
    values = [0.71, 0.74, 0.69, 0.75, 0.7]
    [s] = summary([row("simclr", 0.1, i, v) for i, v in enumerate(values)])
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert s.margin is not None
    assert s.mean - s.margin == pytest.approx(low)
    assert s.mean + s.margin == pytest.approx(high)
    assert summary([row("simclr", 1.0, 0, 0.8)])[0].margin is None


def test_the_table_shows_methods_before_baselines() -> None:
    stream = io.StringIO()
    print_table([*reversed(ROWS), row("simclr", 10, 0, 0.5)], Console(file=stream, width=120))
    text = stream.getvalue()
    assert text.index("simclr") < text.index("pixels")
    header = next(line for line in text.splitlines() if "method" in line)
    assert header.index("1 %") < header.index("10 %") < header.index("100 %") < header.index("10 per class")
    assert "71.1 ± 2.5" in text  # 0.701, 0.711, 0.721: deviation 0.01, times t(2) = 4.303 over √3


def test_a_fraction_that_came_to_another_share_says_so() -> None:
    """1 % of 24 images a class is one of them, 4.2 %: in the table, in sentences, and where it stands on the axis."""
    used = {0.01: 1 / 24, 0.1: 2 / 24 + 0.02, 1.0: 1.0}
    rows = [replace(row("simclr", labels, 0, 0.5), used=share) for labels, share in used.items()]
    columns, [(protocol, method, cells)] = by_amount(summary([*rows, row("simclr", 3, 0, 0.4)]))
    assert columns == ["1 % (4.17 % used)", "10 %", "100 %", "3 per class"], "rounding is not worth words"
    assert (protocol, method, cells) == ("linear", "simclr", ["50.0", "50.0", "50.0", "40.0"])
    old = row("dino", 0.01, 0, 0.4)  # written before that was recorded
    assert by_amount(summary([*rows, old]))[0] == columns[:3]
    assert labels_words(0.01, 1 / 24) == "1 % of the labels (4.17 % used)"
    assert labels_words(3, 0.2) == "3 labels a class"
    axes = Figure().subplots()
    draw_curve(rows, axes)
    assert np.allclose(np.asarray(axes.get_lines()[0].get_xdata()), [1 / 24, 0.1, 1.0])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4.17 %", "10 %", "100 %"]


def test_the_curve_shows_a_line_and_an_interval_a_method() -> None:
    axes = Figure().subplots()
    draw_curve(ROWS, axes)
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["simclr", "pixels"]
    assert np.allclose(np.asarray(lines["simclr"].get_xdata()), [0.01, 0.1, 1.0])
    assert np.allclose(np.asarray(lines["simclr"].get_ydata()), [0.711, 0.72, 0.8])
    assert len(axes.collections) == 2
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1 %", "10 %", "100 %"]


def test_a_picture_of_every_protocol(tmp_path: Path) -> None:
    rows = [*ROWS, row("simclr", 5, 0, 0.4), row("simclr", 0.1, 0, 0.6, "knn")]
    plot_curve(rows, tmp_path / "curve.png")
    plot_curve(ROWS, tmp_path / "narrow.png")
    with Image.open(tmp_path / "curve.png") as wide, Image.open(tmp_path / "narrow.png") as narrow:
        assert wide.width > 2 * narrow.width
        assert wide.height == narrow.height
    with pytest.raises(ValueError, match="no rows"):
        plot_curve([], tmp_path / "none.png")
