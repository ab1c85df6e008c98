"""Times of stages and hops as fitted lines, and the cycle of a decode step that they predict.

A stage takes t(rows, cached) = w + c * rows + a * rows * cached seconds: reading its weights,
computing rows, reading their keys and values. A hop takes h = p + q * bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.errors import InvalidInputError
from pipeline.candidates import Arrangement, Candidate
from pipeline.fitting import LINES, Floats, LineFit
from pipeline.modes import LlamaPipelineMode
from pipeline.stage_cost import Guesses, StageCost, check_measured, check_sizes
from pipeline.stalls import Stalls

TOKEN_BYTES = 8
UNSEEN_DOUBT = 0.3
GUESS_DOUBT = 0.5
"""Relative errors of times in an arrangement that has not run, as nobody knows its contention yet,
and of times that were only guessed."""


DEFAULT_GUESS = StageCost(0.5, 0.03, 1e-5)
"""Shape of a stage's time that nobody guessed: half of it weights at 16 rows. Not its size."""

_HOP_GUESS = np.array([1.0, 0.0, 0.0])


@dataclass(frozen=True)
class Prediction:
    """Seconds of a cycle on average: the best guess, and what they may well be between.

    `spread` is the relative standard deviation that stalls give a single cycle.
    """

    seconds: float
    low: float
    high: float
    spread: float

    @property
    def doubt(self) -> float:
        """How far off the guess may be, relatively."""
        return max(self.seconds - self.low, self.high - self.seconds) / self.seconds


class CostModel:
    """Predicts cycles of S stages, from guesses and from what was measured of decode steps.

    Hop i leaves stage i; the last one returns tokens to the first stage, with all that the driver
    does until that group's next step begins. `row_bytes` is what a row's hidden state takes on a
    hop. `guesses` are stage costs for each arrangement, or only for turns: with nothing measured
    they are the prediction; afterwards they say how a time splits into its terms as long as the
    sizes seen do not, and how the arrangements compare while only one has run. `hops` are guesses
    of hops, seconds per hand-over and per byte. What occupies a stage during a hop belongs to the
    stage's time.
    """

    def __init__(
        self,
        stage_count: int,
        row_bytes: int = 0,
        guesses: Guesses | None = None,
        hops: Sequence[tuple[float, float]] = (),
    ) -> None:
        if stage_count < 1:
            raise InvalidInputError(f"stage_count is {stage_count}; expected at least 1")
        for arrangement, costs in (guesses or {}).items():
            if len(costs) != stage_count:
                raise InvalidInputError(
                    f"{len(costs)} guesses of stages that work {arrangement}; expected one for "
                    f"each of {stage_count} stages"
                )
        if len(hops) not in (0, stage_count):
            raise InvalidInputError(f"{len(hops)} guesses of hops; expected none or {stage_count}")
        self.stage_count = stage_count
        self.row_bytes = row_bytes
        self._guessed = bool(guesses)
        turns = (guesses or {}).get(Arrangement.TURNS) or [DEFAULT_GUESS] * stage_count
        together = (guesses or {}).get(Arrangement.TOGETHER) or turns
        self._guesses = {
            Arrangement.TURNS: _as_array(turns),
            Arrangement.TOGETHER: _as_array(together),
        }
        self._guessed_hops = np.array(list(hops) or [(0.0, 0.0)] * stage_count)
        self._stages = {kind: [LineFit() for _ in range(stage_count)] for kind in Arrangement}
        self._hops = {kind: [LineFit() for _ in range(stage_count)] for kind in Arrangement}
        self._stalls = Stalls()
        self._fitted: dict[Arrangement, Floats | None] = {}
        self._fitted_alone: dict[Arrangement, Floats] = {}
        self._fitted_hops: dict[Arrangement, Floats] = {}

    def observe_stage(
        self, arrangement: Arrangement, stage: int, rows: int, cached: float, seconds: float
    ) -> None:
        """One call of a stage took `seconds`, hand-over and waiting left out.

        Raises `InvalidInputError` for a stage that is not there and for absurd measurements; then
        nothing is changed.
        """
        self._check_index("stage", stage)
        check_sizes(rows, cached)
        check_measured(f"stage {stage}", seconds)
        usual = self._stages[arrangement][stage].observe(rows, rows * cached, seconds)
        self._stalls.add(usual, seconds)
        self._fitted.clear()
        self._fitted_alone.pop(arrangement, None)

    def observe_hop(
        self, arrangement: Arrangement, hop: int, nbytes: float, seconds: float
    ) -> None:
        """One hand-over of `nbytes` took `seconds` until the next stage had it. Raises the same."""
        self._check_index("hop", hop)
        if nbytes < 0:
            raise InvalidInputError(f"hop {hop} moved {nbytes} bytes; expected at least 0")
        check_measured(f"hop {hop}", seconds)
        # How much a short wait varies tells nothing of what stalls cost: stages alone count there.
        self._hops[arrangement][hop].observe(nbytes, 0.0, seconds)
        self._fitted_hops.clear()

    def hop_bytes(self, hop: int, rows: float) -> float:
        """What a hop carries for so many rows: hidden states, or token ids to the first stage."""
        return rows * (TOKEN_BYTES if hop == self.stage_count - 1 else self.row_bytes)

    def stage_costs(self, arrangement: Arrangement) -> list[StageCost] | None:
        """What each stage is taken to cost; None if nothing is known."""
        lines = self._lines(arrangement)
        if lines is None:
            return None
        return [StageCost(*(float(term) for term in terms)) for terms in lines[0]]

    def hop_costs(self, arrangement: Arrangement) -> list[tuple[float, float]]:
        """Seconds per hand-over and per byte of each hop; the guess where none was measured."""
        return [(float(p), float(q)) for p, q in self._hop_lines(arrangement)]

    @property
    def stall_share(self) -> float:
        """Seconds that stalls cost for each second of work."""
        return self._stalls.share

    def predict(self, candidate: Candidate, rows: int, cached: float) -> Prediction | None:
        """A step of every sequence: `rows` of them, `cached` tokens each on average.

        Batch is the sum of all times; continuous is the larger of the slowest stage's work for all
        groups and one group's way round; overlapped the longest path through (stage, microbatch).
        A stall holds up everybody, so the share of stalls comes on top once for each second of
        work, which makes it worse the more stages work at a time. None if nothing is known.
        """
        lines = self._lines(candidate.arrangement)
        if lines is None:
            return None
        group_rows = -(-rows // candidate.groups)
        hops = self._hop_times(candidate.arrangement, group_rows)
        of_group = np.array([1.0, group_rows, group_rows * cached])
        times = lines @ of_group  # [3 lines, S]
        work = lines @ np.array([candidate.groups, rows, rows * cached])
        stalls = self._stalls.share * (work.sum(1) + candidate.groups * hops.sum())
        if candidate.mode is LlamaPipelineMode.OVERLAPPED:
            others = candidate.groups - 1
            last = rows - group_rows * others
            lasts = lines @ np.array([1.0, last, last * cached])
            pairs = zip(times, lasts, strict=True)
            cycles = stalls + [_longest_path(*pair, hops, others) for pair in pairs]
        else:
            cycles = stalls + np.maximum(work.max(1), times.sum(1) + hops.sum())
        seconds = float(cycles[0])
        unseen = 1.0 + self._unseen(candidate.arrangement)
        low, high = float(cycles.min()) / unseen, float(cycles.max()) * unseen
        calls = candidate.groups * self.stage_count
        spread = self._stalls.deviation * float(work[0].sum()) / seconds / math.sqrt(calls)
        return Prediction(seconds, low, high, spread)

    def _unseen(self, arrangement: Arrangement) -> float:
        if all(self._stages[arrangement]):
            return 0.0
        return UNSEEN_DOUBT if any(all(fits) for fits in self._stages.values()) else GUESS_DOUBT

    def _lines(self, arrangement: Arrangement) -> Floats | None:
        """Coefficients [3 lines, S, 3], None if nothing is known."""
        if arrangement not in self._fitted:
            self._fitted[arrangement] = self._fit(arrangement)
        return self._fitted[arrangement]

    def _fit(self, arrangement: Arrangement) -> Floats | None:
        fits = self._stages[arrangement]
        before = self._before(arrangement)
        if before is None and not all(fits):
            return None
        guess = self._guesses[arrangement] if before is None else before[0]
        lines = [
            fit.lines(guess[stage]) if fit or before is None else before[:, stage]
            for stage, fit in enumerate(fits)
        ]
        return np.stack(lines, axis=1)

    def _before(self, arrangement: Arrangement) -> Floats | None:
        """What to believe of an arrangement without its own measurements; None if nothing."""
        other = next(kind for kind in Arrangement if kind is not arrangement)
        if all(self._stages[other]):  # its shape, for instance with context, is this one's too
            return self._alone(other) * (self._guesses[arrangement] / self._guesses[other])
        return np.stack([self._guesses[arrangement]] * LINES) if self._guessed else None

    def _alone(self, arrangement: Arrangement) -> Floats:
        """Lines of an arrangement that was measured, as if it were the only one."""
        if arrangement not in self._fitted_alone:
            pairs = zip(self._stages[arrangement], self._guesses[arrangement], strict=True)
            lines = [fit.lines(guess) for fit, guess in pairs]
            self._fitted_alone[arrangement] = np.stack(lines, axis=1)
        return self._fitted_alone[arrangement]

    def _hop_lines(self, arrangement: Arrangement) -> Floats:
        """Seconds [S, 2] per hand-over and per byte."""
        if arrangement not in self._fitted_hops:
            other = next(kind for kind in Arrangement if kind is not arrangement)
            lines = self._guessed_hops.copy()
            for hop, own in enumerate(self._hops[arrangement]):
                fit = own or self._hops[other][hop]
                if fit:
                    lines[hop] = fit.lines(_HOP_GUESS)[0, :2]
            self._fitted_hops[arrangement] = lines
        return self._fitted_hops[arrangement]

    def _hop_times(self, arrangement: Arrangement, rows: float) -> Floats:
        nbytes = np.array([self.hop_bytes(hop, rows) for hop in range(self.stage_count)])
        lines = self._hop_lines(arrangement)
        return lines[:, 0] + lines[:, 1] * nbytes

    def _check_index(self, what: str, index: int) -> None:
        if not 0 <= index < self.stage_count:
            raise InvalidInputError(f"{what} {index} of {self.stage_count}; expected one of these")


def _as_array(costs: Sequence[StageCost]) -> Floats:
    """Coefficients [S, 3]; a term is never quite zero, so that arrangements can be compared."""
    terms = [(cost.per_call, cost.per_row, cost.per_cached) for cost in costs]
    return np.maximum(np.array(terms), 1e-15)


def _longest_path(times: Floats, last: Floats, hops: Floats, others: int) -> float:
    """Seconds of one step: `others` microbatches and a last one go through the stages in file."""
    ready = [0.0] * (others + 1)
    for stage, hop in enumerate(hops):
        free = 0.0
        for microbatch, arrived in enumerate(ready):
            took = times[stage] if microbatch < others else last[stage]
            free = max(free, arrived) + took
            ready[microbatch] = free + hop
    return float(ready[-1])
