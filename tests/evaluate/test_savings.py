"""What pretraining saves in labels: read off scratch's curve, with intervals, and nothing is called nothing."""

import math
from dataclasses import replace

import pytest

from selfsight.evaluate.results import Row
from selfsight.evaluate.savings import savings


def rows(method: str, curve: dict[float, list[float]]) -> list[Row]:
    """A row for each amount's values, seed by seed."""
    return [
        Row("r", method, "d", "detection", "finetune", labels, seed, "map_50", value, 1.0)
        for labels, values in curve.items()
        for seed, value in enumerate(values)
    ]


SCRATCH = rows("scratch", {0.1: [0.1, 0.12, 0.11], 0.4: [0.3, 0.32, 0.31], 1.0: [0.5, 0.52, 0.51]})


def test_what_scratch_needs_is_between_the_amounts_measured_on_a_logarithmic_axis() -> None:
    found = savings([*SCRATCH, *rows("simclr", {0.1: [0.2, 0.22, 0.21], 0.4: [0.5, 0.52, 0.51]})])
    assert [s.labels for s in found] == [0.1, 0.4]
    assert found[0].needed == pytest.approx(0.2), "half way between 0.1 and 0.4 in the logarithm"
    assert found[1].needed == pytest.approx(1.0)
    assert found[0].gain == pytest.approx(0.1)
    assert found[0].measurable
    assert found[0].beyond is None
    assert found[0].low == pytest.approx(0.2), "all seeds agree"
    assert (
        found[0].sentence() == "With 10 % of the labels pretraining gives what scratch needs 20 % (20 % to 20 %) for."
    )


@pytest.mark.parametrize("second", [0.0, -0.01])
def test_where_scratch_is_flat_the_rise_begins_at_the_end_of_it(second: float) -> None:
    scratch = rows("scratch", {0.01: [0.0, 0.0], 0.1: [second, second], 1.0: [0.6, 0.6]})
    (found,) = savings([*scratch, *rows("simclr", {0.01: [0.1, 0.1]})])
    assert found.needed == pytest.approx(0.1 * 10 ** (1 / 6))


def test_a_fraction_counts_as_the_share_that_it_came_to() -> None:
    """1 % of 10 images a class is one of each, 10 %: no less than the same 10 % asked for by name."""
    share = {0.01: 0.1, 0.4: 0.4, 1.0: 1.0}
    scratch = rows("scratch", {0.01: [0.1, 0.1], 0.4: [0.3, 0.3], 1.0: [0.5, 0.5]})
    pretrained = rows("simclr", {0.01: [0.2, 0.2]})
    (found,) = savings([replace(row, used=share[float(row.labels)]) for row in [*scratch, *pretrained]])
    assert found.needed == pytest.approx(0.2), "half way between 10 and 40 % in the logarithm, not 1 and 40"
    assert found.sentence().startswith("With 1 % of the labels (10 % used) pretraining gives what scratch needs 20 %")


def test_intervals_are_of_the_seeds() -> None:
    found = savings([*SCRATCH, *rows("dino", {0.1: [0.2, 0.3, 0.13]})])[0]
    logs = [math.log(0.2), math.log(0.1) + math.log(4) * 0.9, math.log(0.1) + math.log(4) * 0.1]
    mean = sum(logs) / 3
    spread = 4.302653 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    assert found.needed == pytest.approx(math.exp(mean))
    assert (found.low, found.high) == pytest.approx((math.exp(mean - spread), math.exp(mean + spread)))


def test_where_a_few_seeds_are_beyond_scratch_it_gives_a_lower_bound() -> None:
    scratch = rows("scratch", {0.1: [0.1] * 5, 1.0: [0.5] * 5})
    (found,) = savings([*scratch, *rows("dino", {0.1: [0.3, 0.3, 0.3, 0.3, 0.52]})])
    needed = 0.1 * 10 ** ((4 * 0.5 + 1) / 5)
    assert found.needed == pytest.approx(needed)
    assert "pretraining gives what scratch needs 40 % or more for, in 1 of 5 seeds over 100 % (" in found.sentence()


def test_a_gain_within_the_noise_is_called_none() -> None:
    (found,) = savings([*SCRATCH, *rows("dino", {0.1: [0.2, 0.05, 0.12]})])
    assert not found.measurable
    assert found.sentence().endswith("no measurable gain (+1.3 ± 21.1 points in 3 seeds; more would narrow it).")
    (worse,) = savings([*SCRATCH, *rows("dino", {0.1: [0.05, 0.05, 0.12]})])
    assert worse.sentence().endswith("no measurable gain (-3.7 ± 10.3 points).")
    (rounded,) = savings([*SCRATCH, *rows("dino", {0.1: [0.0985, 0.13, 0.101]})])
    assert rounded.gain < 0
    assert rounded.sentence().endswith("no measurable gain (+0.0 ± 2.4 points)."), "not -0.0"


def test_beyond_all_that_scratch_was_given_it_says_more() -> None:
    (found,) = savings([*SCRATCH, *rows("dino", {0.4: [0.7, 0.8, 0.75]})])
    assert found.beyond == 1.0
    words = "With 40 % of the labels pretraining gives what scratch needs more than 100 % for (+44.0 ± 9.9 points)."
    assert found.sentence() == words


def test_with_one_amount_scratch_needs_more_than_that() -> None:
    (found,) = savings([*rows("scratch", {0.01: [0.5, 0.51]}), *rows("dino", {0.01: [0.6, 0.62]})])
    assert "scratch needs more than 1 % for (+10.5 ±" in found.sentence()


def test_an_interval_ends_where_scratch_was_measured() -> None:
    """Beyond it nothing is known: not that all labels are enough, nor that 14 % are where 10 % were the most."""
    scratch = rows("scratch", {0.1: [0.6] * 3, 0.4: [0.8] * 3, 1.0: [0.82] * 3})
    (found,) = savings([*scratch, *rows("dino", {0.1: [0.79, 0.80, 0.815]})])
    assert found.high is not None
    assert found.high > 1
    assert found.sentence().endswith("pretraining gives what scratch needs 49 % (17 % to more than 100 %) for.")
    uneven = rows("scratch", {0.1: [0.6] * 3, 0.4: [0.62, 0.8, 0.8], 1.0: [0.9] * 3})
    (found,) = savings([*uneven, *rows("dino", {0.1: [0.62] * 3})])
    assert "(less than 10 % to more than 100 %) for." in found.sentence()


def test_no_gain_in_accuracy_is_surer_than_one_test_image() -> None:
    seeds = [*rows("scratch", {0.1: [0.6] * 3}), *rows("dino", {0.1: [0.65] * 3})]
    for tested, sure in ((20, False), (200, True)):
        (found,) = savings([replace(row, metric="accuracy", tested=tested) for row in seeds])
        assert found.measurable == sure, "each seed is right in one image more of the same 20"
    assert savings([replace(row, tested=20) for row in seeds])[0].measurable, "an AP counts boxes"


def test_a_loss_is_called_one() -> None:
    (found,) = savings([*SCRATCH, *rows("dino", {0.4: [0.2, 0.22, 0.21]})])
    assert found.sentence().endswith("pretraining is worse than training from scratch (-10.0 ± 0.0 points).")


def test_one_seed_says_little() -> None:
    (found,) = savings([*rows("scratch", {0.1: [0.1]}), *rows("dino", {0.1: [0.9]})])
    assert (found.margin, found.low, found.measurable) == (None, None, False)
    assert "--seeds 3" in found.sentence()


def test_a_curve_that_falls_or_rests_counts_from_where_its_height_was_first_reached() -> None:
    scratch = rows("scratch", {0.1: [0.2], 0.2: [0.3], 0.5: [0.3], 1.0: [0.25]})
    (found,) = savings([*scratch, *rows("dino", {0.1: [0.3]})])
    assert found.needed == pytest.approx(0.2)
    assert found.beyond is None


def test_counts_per_class_are_not_mixed_with_fractions() -> None:
    counts = [*rows("scratch", {5: [0.2, 0.21], 20: [0.4, 0.41]}), *rows("dino", {5: [0.3, 0.31]})]
    (found,) = savings([*counts, *SCRATCH])
    assert found.labels == 5
    assert found.sentence().startswith("With 5 labels a class pretraining gives what scratch needs 10 per class")
