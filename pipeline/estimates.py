"""What each candidate's cycle would take, from the cost model and from measured cycles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.candidates import BATCH, Candidate, candidates
from pipeline.corrections import MeasuredCycles, Ratio
from pipeline.cost_model import CostModel
from pipeline.stalls import WORST_STALL


@dataclass(frozen=True)
class Estimate:
    """One candidate's cycle in seconds: by the model, measured, and what is made of both.

    `low` is what it may well take at best, `doubt` how far off `seconds` may be, relatively.
    """

    candidate: Candidate
    predicted_s: float
    measured_s: float | None
    seconds: float
    low: float
    doubt: float


class Estimator:
    """Predictions times what measured cycles say of them: of the candidate itself and its kind."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._measured: dict[Candidate, MeasuredCycles] = {}

    def add(self, candidate: Candidate, rows: int, cached: float, seconds: float) -> None:
        """One measured cycle."""
        measured = self._measured.setdefault(candidate, MeasuredCycles())
        usual = measured.seconds(rows)
        if usual is None or seconds > WORST_STALL * usual:
            predicted = self._model.predict(candidate, rows, cached)
            usual = predicted.seconds if predicted is not None else usual or seconds
        measured.add(rows, cached, min(seconds, WORST_STALL * usual))

    def estimates(self, rows: int, cached: float) -> list[Estimate]:
        """What each candidate would take, the simplest first; empty if nothing is known."""
        every = candidates(self._model.stage_count, rows)
        own = {
            one: self._measured[one].ratio(self._model, one, rows, cached)
            for one in every
            if one in self._measured
        }
        found = []
        for one in every:
            predicted = self._model.predict(one, rows, cached)
            if predicted is None:
                continue
            belief, ratio = self._ratio(one, own)
            # Cycles of this size contain whatever the fit has wrong there.
            unseen = (ratio.sd / belief.sd) ** 2
            low = predicted.seconds - unseen * (predicted.seconds - predicted.low)
            found.append(
                Estimate(
                    one,
                    predicted.seconds,
                    self._measured[one].seconds(rows) if one in self._measured else None,
                    predicted.seconds * ratio.mean,
                    low * max(0.0, ratio.mean - ratio.sd),
                    math.hypot(ratio.sd / ratio.mean, unseen * predicted.doubt),
                )
            )
        return found

    def _ratio(self, one: Candidate, own: Mapping[Candidate, Ratio | None]) -> tuple[Ratio, Ratio]:
        """What the others of its kind let one believe, and that with its own cycles."""
        belief = Ratio()
        if one != BATCH:
            for other, measured in own.items():
                if other not in (BATCH, one) and measured is not None:
                    belief = belief.given(measured.of_sibling())
            belief = belief.of_sibling()
        measured = own.get(one)
        return belief, belief if measured is None else belief.given(measured)
