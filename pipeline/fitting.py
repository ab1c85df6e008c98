"""A time as a line in what it depends on, fitted online to measurements that now and then lie."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAMPLES = 16
"""Newest samples kept per distinct input; their median is what is fitted."""
INPUTS = 32
"""Distinct inputs kept; the one not seen for longest goes first."""
SHARE_SD = 0.3
"""How far each term's share of a time may well be from the guess."""
LINES = 3
"""Lines of a fit: by the guess as it is, and by guesses with the constant's share down and up."""
FLOOR_SD = 0.01
SAMPLE_SD = 0.05
OCTAVE_SD = 0.05
"""Relative errors of a median: at best, of one sample, and per factor of two in size from the
newest: no time is quite a line, so the line is made to hold where the work is."""
HALF_LIFE = 2048
"""Samples after which an input that came no more counts half."""


class _Samples:
    """The newest samples of one input."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=SAMPLES)
        self.last: deque[float] = deque(maxlen=SAMPLES)
        self.newest = 0
        self.usual: float | None = None  # the median, when it was last asked for
        self._summary: tuple[float, float] | None = None

    def add(self, last: float, seconds: float, now: int) -> None:
        self.seconds.append(seconds)
        self.last.append(last)
        self.newest = now
        self._summary = None

    def summary(self) -> tuple[float, float]:
        """Mean of the third input and median of the seconds."""
        if self._summary is None:
            self.usual = statistics.median(self.seconds)
            self._summary = statistics.fmean(self.last), self.usual
        return self._summary


class LineFit:
    """Fits seconds = x @ coefficients for inputs x = (1, size, third), all >= 0.

    Each distinct input counts by the median of its newest samples, so that a call that took ten
    times as long, as the system gave its core away, changes nothing. The rest is Bayesian linear
    regression in relative errors, on non-negative coefficients: what the inputs seen so far do
    not tell apart is split as the guess says.
    """

    def __init__(self) -> None:
        self._inputs: dict[Hashable, tuple[float, _Samples]] = {}
        self._now = 0

    def __bool__(self) -> bool:
        return bool(self._inputs)

    def observe(self, size: float, third: float, seconds: float) -> float | None:
        """Add one measurement. Samples whose `third` differs by less than 1.4x are one input.

        Returns what this input usually takes, None if that is not known yet.
        """
        self._now += 1
        key = (size, int(2 * math.log2(1 + third)))
        kept = self._inputs.pop(key, None) or (size, _Samples())
        self._inputs[key] = kept  # last: the newest
        kept[1].add(third, seconds, self._now)
        if len(self._inputs) > INPUTS:
            del self._inputs[next(iter(self._inputs))]
        return kept[1].usual

    def lines(self, guess: Floats) -> Floats:
        """Coefficients [3 lines, 3] in seconds per unit, given at least one sample.

        Of `guess` [3] only the terms' shares count. The first line is the best guess; the others
        are as good on inputs that were seen, and their spread elsewhere says what is not known.
        """
        x, seconds, variance = self._points()
        newest, scale = x[-1], np.where(x[-1] > 0, x[-1], 1.0)
        # Unknown: the terms' shares of the newest input's time. Residuals are relative.
        features = x / scale * (seconds[-1] / seconds)[:, None]
        weighted = features / variance[:, None]
        precision = features.T @ weighted + np.eye(3) / SHARE_SD**2
        target = weighted.sum(0)[:, None] + _guesses(guess * newest) / SHARE_SD**2  # [3, lines]
        solved = np.linalg.solve(precision, target).T
        for line in range(LINES):
            if (solved[line] < 0).any():
                solved[line] = _non_negative(precision, target[:, line])
        return solved * seconds[-1] / scale

    def _points(self) -> tuple[Floats, Floats, Floats]:
        """Inputs [n, 3], medians [n] and relative variances [n], the newest last."""
        newest = max(next(reversed(self._inputs.values()))[0], 1.0)
        x, medians, variance = [], [], []
        for size, samples in self._inputs.values():
            third, median = samples.summary()
            octaves = math.log2(max(size, 1.0) / newest)
            error = SAMPLE_SD**2 / len(samples.seconds) + (OCTAVE_SD * octaves) ** 2 + FLOOR_SD**2
            x.append((1.0, size, third))
            medians.append(median)
            variance.append(error * 2.0 ** ((self._now - samples.newest) / HALF_LIFE))
        return np.array(x), np.array(medians), np.array(variance)


def _guesses(times: Floats) -> Floats:
    """Shares [3, LINES] by a guess of the terms' times, each column summing to 1."""
    constant, size, third = times.tolist()
    rest = size + third
    size, third = (size / rest, third / rest) if rest > 0 else (1.0, 0.0)
    share = constant / (constant + rest) if constant + rest > 0 else 1.0
    constants = np.array([share, max(0.0, share - SHARE_SD), min(1.0, share + SHARE_SD)])
    return np.array([constants, size * (1 - constants), third * (1 - constants)])


def _non_negative(precision: Floats, target: Floats) -> list[float]:
    """Minimise u'Pu / 2 - target'u over u >= 0; the free minimum is known to be elsewhere."""
    p, t = precision.tolist(), target.tolist()
    found = []
    for i, j in ((0, 1), (0, 2), (1, 2)):  # two terms, or one; t is never negative
        u = [0.0] * 3
        determinant = p[i][i] * p[j][j] - p[i][j] ** 2
        u[i] = (t[i] * p[j][j] - t[j] * p[i][j]) / determinant
        u[j] = (t[j] * p[i][i] - t[i] * p[i][j]) / determinant
        found.append(u)
    for i in range(3):
        u = [0.0] * 3
        u[i] = t[i] / p[i][i]
        found.append(u)
    # At each of these minima the cost is -target'u / 2.
    feasible = (u for u in found if min(u) >= 0)
    return max(feasible, key=lambda u: sum(a * b for a, b in zip(u, t, strict=True)))
