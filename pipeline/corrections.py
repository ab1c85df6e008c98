"""What a cost model does not know: measured cycles of a candidate over predicted ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.candidates import Candidate
from pipeline.cost_model import CostModel

MEMORY = 128
"""Cycles over which a mean forgets."""
SIZES = 8
"""Distinct sizes kept per candidate."""
PRIOR_SD = 0.15
"""What the model is trusted to within, before a cycle was measured."""
SIBLING_SD = 0.07
"""How much the ratios of candidates in one arrangement differ."""
CYCLE_SD = 0.03
"""What a cycle varies by at least; a few alike prove little."""


@dataclass
class _Cycles:
    """Running means of cycles of one size."""

    rows: int
    cached: float = 0.0
    seconds: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, cached: float, seconds: float) -> None:
        self.count += 1
        gain = 1.0 / min(self.count, MEMORY)
        off = seconds - self.seconds
        self.variance = (1 - gain) * (self.variance + gain * off * off)
        self.seconds += gain * off
        self.cached += gain * (cached - self.cached)


@dataclass(frozen=True)
class Ratio:
    """A belief about measured / predicted: its mean and standard deviation.

    Stalls make cycles vary, and beliefs count by their certainty: three cycles that were all hit
    do not outweigh the model, and three quiet ones do.
    """

    mean: float = 1.0
    sd: float = PRIOR_SD

    def given(self, other: Ratio) -> Ratio:
        """Both beliefs together."""
        own, others = self.sd**-2, other.sd**-2
        mean = (own * self.mean + others * other.mean) / (own + others)
        return Ratio(mean, (own + others) ** -0.5)

    def of_sibling(self) -> Ratio:
        """What it says about another candidate of its kind.

        The further it is off, the less: what holds up three groups, a fourth may hide.
        """
        return Ratio(self.mean, math.hypot(self.sd, SIBLING_SD, self.mean - 1))


class MeasuredCycles:
    """The cycles of one candidate, by size. Means, not medians: stalls are part of the rate."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], _Cycles] = {}

    def add(self, rows: int, cached: float, seconds: float) -> None:
        """One cycle of `rows` sequences with `cached` tokens each."""
        key = (rows, int(2 * math.log2(1 + cached)))
        self._sizes[key] = size = self._sizes.pop(key, None) or _Cycles(rows)
        size.add(cached, seconds)
        if len(self._sizes) > SIZES:
            del self._sizes[next(iter(self._sizes))]

    def seconds(self, rows: int) -> float | None:
        """The newest mean at `rows`, None if there is none."""
        means = [size.seconds for size in self._sizes.values() if size.rows == rows]
        return means[-1] if means else None

    def ratio(
        self, model: CostModel, candidate: Candidate, rows: int, cached: float
    ) -> Ratio | None:
        """Against what `model` says now; sizes far from `rows` and `cached` count less."""
        count = total = variance = least = 0.0
        for size in self._sizes.values():
            predicted = model.predict(candidate, size.rows, size.cached)
            if predicted is None:
                continue
            octaves = abs(math.log2(size.rows / rows))
            octaves += abs(math.log2((1 + size.cached) / (1 + cached))) / 2
            cycles = min(size.count, MEMORY) * 4.0**-octaves
            count += cycles
            total += cycles * size.seconds / predicted.seconds
            variance += cycles * size.variance / predicted.seconds**2
            least = max(least, CYCLE_SD, predicted.spread)
        if not count:
            return None
        return Ratio(total / count, math.sqrt(max(variance / count, least**2) / count))
