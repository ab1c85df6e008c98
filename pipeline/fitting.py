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
    shares = times / times.sum() if times.sum() > 0 else np.eye(3)[0]
    rest = shares * (0.0, 1.0, 1.0)
    rest = rest / rest.sum() if rest.sum() > 0 else np.eye(3)[1]
    constants = (shares[0], max(0.0, shares[0] - SHARE_SD), min(1.0, shares[0] + SHARE_SD))
    return np.array([np.eye(3)[0] * share + rest * (1 - share) for share in constants]).T


def _non_negative(precision: Floats, target: Floats) -> Floats:
    """Minimise u'Pu / 2 - target'u over u >= 0; the free minimum is known to be elsewhere."""
    best, found = math.inf, np.zeros(3)
    for kept in ([0, 1], [0, 2], [1, 2], [0], [1], [2]):
        u = np.zeros(3)
        u[kept] = np.linalg.solve(precision[np.ix_(kept, kept)], target[kept])
        cost = float(u @ precision @ u / 2 - target @ u)
        if cost < best and (u >= 0).all():
            best, found = cost, u
    return found
