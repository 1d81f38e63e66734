"""How many labels pretraining saves: what amount of them training from scratch needs to be as good."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from selfsight.evaluate.results import Row, came_to, labels_words

BASELINE = "scratch"


@dataclass(frozen=True)
class Savings:
    """What one amount of labels is worth to a pretrained network, in labels of one trained from scratch."""

    labels: float | int
    """The amount: a fraction, or a count per class."""
    used: float | None
    """The share of the training labels that it came to, where that was recorded."""
    seeds: int
    gain: float
    """Mean over the seeds of the pretrained network's value less that of the one from scratch, same labels."""
    margin: float | None
    """Half the width of the gain's 95 % t-interval, of an accuracy not less than one test image; None with one seed."""
    needed: float
    """What amount scratch needs, the geometric mean over the seeds, on its curve over the logarithm of the labels."""
    low: float | None
    """Lower end of its 95 % t-interval; None with one seed."""
    high: float | None
    """Upper end; None with one seed."""
    beyond: float | int | None
    """The most labels that scratch was given, where in some seed it was worse even with these, so that `needed` is too
    low; else None."""
    seeds_beyond: int
    """In how many seeds it was."""
    measured: tuple[float, float]
    """The least and the most labels that scratch was given: of what lies beyond nothing is known."""

    @property
    def measurable(self) -> bool:
        """Whether the gain's interval is above zero."""
        return self.margin is not None and self.gain > self.margin + 1e-9  # not by rounding alone

    def sentence(self) -> str:
        """Return it as a sentence: 'With 10 % of the labels pretraining gives what scratch needs 35 % (…) for.'."""
        with_labels = f"With {labels_words(self.labels, self.used)}"
        if self.margin is None:
            return f"{with_labels} one seed says little of what pretraining saves: use --seeds 3 or more."
        points = f"{100 * self.gain:+z.1f} ± {100 * self.margin:.1f} points"
        if self.gain < -self.margin:
            return f"{with_labels} pretraining is worse than training from scratch ({points})."
        if not self.measurable:
            hint = f" in {self.seeds} seeds; more would narrow it" if self.gain > 0 else ""
            return f"{with_labels} pretraining brings no measurable gain ({points}{hint})."
        if self.beyond is not None:
            most = self._amount(self.beyond)
            some = f"{self._amount(self.needed)} or more for, in {self.seeds_beyond} of {self.seeds} seeds over {most}"
            more = f"more than {most} for" if self.seeds_beyond == self.seeds else some
            return f"{with_labels} pretraining gives what scratch needs {more} ({points})."
        assert self.low is not None
        assert self.high is not None
        first, last = self.measured
        low = f"less than {self._amount(first)}" if self.low < 0.999 * first else self._amount(self.low)
        high = f"more than {self._amount(last)}" if self.high > 1.001 * last else self._amount(self.high)
        return f"{with_labels} pretraining gives what scratch needs {self._amount(self.needed)} ({low} to {high}) for."

    def _amount(self, amount: float) -> str:
        if isinstance(self.labels, int):
            return f"{amount:.0f} per class"
        per_cent = amount * 100
        return f"{per_cent:.0f} %" if per_cent >= 10 else f"{per_cent:.2g} %"


def savings(rows: Sequence[Row]) -> list[Savings]:
    """Return what each amount of labels saves, the smallest first, from the rows of one method, protocol and metric.

    Rows of training from scratch are among them, with the same amounts and seeds; a higher value is better. What
    scratch needs is read off its curve, linear between the amounts measured and never falling, seed by seed, each
    amount at the share of the labels that it came to. Amounts that were not measured in both ways are left out, so are
    fractions where there are counts.
    """
    kind = int if any(isinstance(row.labels, int) for row in rows) else float
    values = {(row.method == BASELINE, row.labels, row.seed): row.value for row in rows if isinstance(row.labels, kind)}
    amounts = sorted({labels for _, labels, _ in values})
    used = {row.labels: row.used for row in rows if isinstance(row.labels, kind)}
    place = {amount: came_to(amount, used[amount]) for amount in amounts}
    finest = max((1 / row.tested for row in rows if row.tested and row.metric.endswith("accuracy")), default=0.0)
    found = []
    for labels in amounts:
        seeds = [s for _, a, s in values if a == labels and {(True, a, s), (False, a, s)} <= values.keys()]
        seeds = sorted(set(seeds))
        if not seeds:
            continue
        gains, logs = [], []
        beyond: float | int | None = None
        count, given = 0, [place[a] for a in amounts if any((True, a, s) in values for s in seeds)]
        for seed in seeds:
            value = values[False, labels, seed]
            gains.append(value - values[True, labels, seed])
            curve = [(math.log(place[a]), values[True, a, seed]) for a in amounts if (True, a, seed) in values]
            places, heights = zip(*curve, strict=True)
            rising = np.maximum.accumulate(heights)
            if value > rising[-1]:
                count += 1
                beyond = max(place[a] for a in amounts if (True, a, seed) in values)
            # Equal heights would make the inverse ambiguous: of that height the least amount is meant, and above it the
            # rise begins at the last.
            at = int(np.searchsorted(rising, value))
            if 0 < at < len(places):
                share = (value - rising[at - 1]) / (rising[at] - rising[at - 1])
                logs.append(float(places[at - 1] + share * (places[at] - places[at - 1])))
            else:
                logs.append(places[min(at, len(places) - 1)])
        gain, margin = _interval(gains)
        if margin is not None:
            margin = max(margin, finest)
        needed, spread = _interval(logs)
        low, high = (None, None) if spread is None else (math.exp(needed - spread), math.exp(needed + spread))
        known = math.exp(needed), low, high, beyond, count, (min(given), max(given))
        found.append(Savings(labels, used[labels], len(seeds), gain, margin, *known))
    return found


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % t-interval."""
    n = len(values)
    margin = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return float(np.mean(values)), margin
