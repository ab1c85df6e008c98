"""Mode `auto`: what to run next, when to try something else, and why."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from pipeline.candidates import BATCH, Arrangement, Candidate
from pipeline.cost_model import CostModel
from pipeline.estimates import Estimate, Estimator
from pipeline.explanation import Explanation
from pipeline.modes import LlamaPipelineMode
from pipeline.stage_cost import Guesses, check_measured, check_sizes

MARGIN = 0.03
"""What must be gained for a change; if it is sure, or to something simpler, a third of it."""
TIE = 0.01
"""Of what is this near the best, the simplest is taken."""
KNOWN = 0.12
"""A candidate may be chosen without a trial if its time is known within this, relatively."""
TRIAL_CYCLES = 3
"""Cycles of a trial, after one that fills the pipeline and is not counted."""
SWITCH_CYCLES = 2
"""Cycles that starting and ending a trial cost."""
FREE_TRIALS = 12.0
TRIAL_SHARE = 0.02
"""Trials may lose so many of the best known cycles, and in the long run this share of the time."""
MOST_TRIALS = 4
"""Trials after which a candidate that may still be a little faster is left alone."""
HOPELESS = 2.0
"""A trial ends early when a cycle takes so many times the best, and the stages' times agree."""
MOVED = 1.5
"""Rows, cached tokens or the best time must change by this factor before a loser is tried again;
such a change of sizes ends a trial, too, and is looked at at once."""
NOTICED = 1.1
"""A change of sizes by this factor is looked at before the next decision is due."""
SETTLED_CYCLES = 3
"""But not sooner after the last one: where prompts come in at every step, sizes change always."""
SHORT = 64
"""Cached tokens that nobody notices: sizes are compared with so many added."""
EARLY_CYCLES, LATE_CYCLES, YOUNG_CYCLES = 8, 16, 64
"""Cycles between decisions, early and later, and what is early."""


@dataclass(frozen=True)
class Choice:
    """What to run: groups are 1 in batch, and microbatches of one step in overlapped mode."""

    mode: LlamaPipelineMode
    groups: int
    predicted_cycle_s: float | None
    reason: str

    @property
    def candidate(self) -> Candidate:
        """What was chosen, as measurements name it."""
        return Candidate(self.mode, self.groups)


@dataclass(frozen=True)
class _Point:
    """Where a decision was made: sizes, and the best time known there."""

    rows: int
    cached: float
    seconds: float

    def moved(self, other: _Point, factor: float) -> bool:
        """Whether anything differs by more than `factor`."""
        ours = (self.rows, SHORT + self.cached, self.seconds)
        theirs = (other.rows, SHORT + other.cached, other.seconds)
        return any(max(a, b) > factor * min(a, b) for a, b in zip(ours, theirs, strict=True))


@dataclass
class _Trial:
    """A candidate that is being tried, what it may take, and the best when that began.

    `ratio` is what the best was thought to take over what the model alone said of it.
    """

    candidate: Candidate
    seconds: float
    best: Candidate
    best_s: float
    ratio: float
    cycles_left: int = TRIAL_CYCLES + 1
    measured: int = 0

    def best_now(self, model: CostModel, rows: int, cached: float) -> float:
        """What the best would take at other sizes."""
        predicted = model.predict(self.best, rows, cached)
        return self.best_s if predicted is None else predicted.seconds * self.ratio


class AutoMode:
    """Chooses the fastest way to run the next cycle; belongs to the thread that drives.

    It starts in batch mode, tries what could be faster for a few cycles, and stays with what
    measurements say, so it never knowingly loses to batch. Without measured stages it stays in
    batch. Where prompts come in between the steps, so that no cycle of a trial can be measured,
    times of stages and hops alone decide. `row_bytes` and `guesses` are the cost model's.
    """

    def __init__(
        self, stage_count: int, row_bytes: int = 0, guesses: Guesses | None = None
    ) -> None:
        self.model = CostModel(stage_count, row_bytes, guesses)
        self._estimator = Estimator(self.model)
        self._lost: dict[Candidate, _Point] = {}
        self._tried: Counter[Candidate] = Counter()  # and undecided
        self._current = BATCH
        self._unclean: set[Arrangement] = set()  # tried, with prompts in between all the time
        self._choice: Choice | None = None
        self._explained: tuple[Choice, _Point] | None = None  # the last that was a choice at all
        self._at = _Point(0, 0.0, 0.0)
        self._trial: _Trial | None = None
        self._last_run: Candidate | None = None
        self._due_in = 0
        self._cycles = self._decided_at = 0
        self._elapsed_s = 0.0
        self._spent_s = 0.0

    def observe_stage(
        self, arrangement: Arrangement, stage: int, rows: int, cached: float, seconds: float
    ) -> None:
        """See `CostModel.observe_stage`."""
        self.model.observe_stage(arrangement, stage, rows, cached, seconds)

    def observe_hop(
        self, arrangement: Arrangement, hop: int, nbytes: float, seconds: float
    ) -> None:
        """See `CostModel.observe_hop`."""
        self.model.observe_hop(arrangement, hop, nbytes, seconds)

    def observe_cycle(
        self, candidate: Candidate, rows: int, cached: float, seconds: float | None
    ) -> None:
        """A step of all `rows` sequences took `seconds`, run as `candidate`.

        None for `seconds` if something else ran in between. The first cycle after a change fills
        the pipeline: it is not taken as this candidate's. Raises `InvalidInputError` for absurd
        sizes and times; then nothing is changed.
        """
        check_sizes(rows, cached)
        if seconds is not None:
            check_measured(f"a cycle of {candidate}", seconds)
        self._cycles += 1
        self._due_in -= 1
        self._elapsed_s += self._at.seconds if seconds is None else seconds
        filled = candidate == self._last_run
        self._last_run = candidate
        clean = filled and seconds is not None
        if filled and seconds is not None:
            self._estimator.add(candidate, rows, cached, seconds)
            self._unclean.discard(candidate.arrangement)
        trial = self._trial
        if trial is not None and candidate == trial.candidate:
            self._tried_a_cycle(trial, rows, cached, seconds, clean)

    def _tried_a_cycle(
        self, trial: _Trial, rows: int, cached: float, seconds: float | None, clean: bool
    ) -> None:
        trial.cycles_left -= 1
        trial.measured += clean
        if seconds is None:
            self._spent_s += max(0.0, trial.seconds - trial.best_s)
            return
        best_s = trial.best_now(self.model, rows, cached)
        self._spent_s += max(0.0, seconds - best_s)
        if seconds > HOPELESS * best_s:
            # A stall, or really so slow? The stages' own times know by now.
            for one in self._estimator.estimates(rows, cached):
                if one.candidate == trial.candidate and one.low > best_s:
                    trial.cycles_left = 0

    def rest(self) -> None:
        """A run begins after a pause: what was learnt is kept, but no trial goes on."""
        self._trial = self._choice = self._last_run = None

    def choose(self, rows: int, cached: float) -> Choice:
        """What to run next for `rows` sequences with `cached` tokens each on average.

        Cheap between decisions, which are made every few cycles and when sizes change. Raises
        `InvalidInputError` for rows below 1 and cached below 0.
        """
        check_sizes(rows, cached)
        if self.model.stage_count == 1 or rows == 1:
            why = "one stage" if self.model.stage_count == 1 else "one sequence"
            self._trial = None
            predicted = self.model.predict(BATCH, rows, cached)
            seconds = None if predicted is None else predicted.seconds
            self._at = _Point(rows, cached, 0.0)
            self._choice = Choice(LlamaPipelineMode.BATCH, 1, seconds, why)
        elif self._is_due(rows, cached):
            self._choice = self._decide(rows, cached)
        assert self._choice is not None
        return self._choice

    def explain(self) -> Explanation | None:
        """Every candidate at the sizes of the last decision among several.

        None before anything is known.
        """
        if self._explained is not None:
            choice, at = self._explained
        elif self._choice is not None:
            choice, at = self._choice, self._at
        else:
            return None
        estimates = self._estimator.estimates(at.rows, at.cached)
        if choice.candidate not in [one.candidate for one in estimates]:
            return None
        return Explanation.of(
            self.model, at.rows, at.cached, estimates, choice.candidate, choice.reason,
            frozenset(self._lost),
        )  # fmt: skip

    def _is_due(self, rows: int, cached: float) -> bool:
        choice, trial = self._choice, self._trial
        if choice is None or choice.groups > rows:
            return True
        here = _Point(rows, cached, self._at.seconds)
        if self._at.moved(here, MOVED):
            return True
        if trial is not None:
            return trial.cycles_left <= 0
        settled = self._cycles - self._decided_at >= SETTLED_CYCLES
        return self._due_in <= 0 or (settled and self._at.moved(here, NOTICED))

    def _decide(self, rows: int, cached: float) -> Choice:
        ended, self._trial = self._trial, None
        self._decided_at = self._cycles
        estimates = {one.candidate: one for one in self._estimator.estimates(rows, cached)}
        if not estimates:
            self._due_in = TRIAL_CYCLES
            self._at = _Point(rows, cached, 0.0)
            return Choice(LlamaPipelineMode.BATCH, 1, None, "nothing measured yet")
        if ended is not None and ended.cycles_left <= 0 and not ended.measured:
            self._unclean.add(ended.candidate.arrangement)
        chosen, reason = self._fastest(estimates)
        self._current = chosen.candidate
        self._due_in = EARLY_CYCLES if self._cycles < YOUNG_CYCLES else LATE_CYCLES
        self._at = at = _Point(rows, cached, chosen.seconds)
        self._lost = {key: lost for key, lost in self._lost.items() if not lost.moved(at, MOVED)}
        if ended is not None and ended.candidate != chosen.candidate:
            self._end_trial(ended, estimates, chosen)
        trial = self._next_trial(estimates, chosen)
        if trial is None:
            choice = Choice(chosen.candidate.mode, chosen.candidate.groups, chosen.seconds, reason)
        else:
            ratio = chosen.seconds / chosen.predicted_s
            self._trial = _Trial(
                trial.candidate, trial.seconds, chosen.candidate, chosen.seconds, ratio
            )
            reason = f"trial: may take {_ms(trial.low)} instead of {_ms(chosen.seconds)}"
            choice = Choice(trial.candidate.mode, trial.candidate.groups, trial.seconds, reason)
        self._explained = choice, at
        return choice

    def _end_trial(
        self, ended: _Trial, estimates: dict[Candidate, Estimate], chosen: Estimate
    ) -> None:
        """Take note of a trial that did not win."""
        self._spent_s += chosen.seconds  # the pipeline drains
        if ended.cycles_left > 0:  # cut short by other sizes: nothing is decided
            return
        tried = estimates.get(ended.candidate)
        self._tried[ended.candidate] += 1
        undecided = tried is not None and tried.low < chosen.seconds * (1 - MARGIN)
        if not undecided or self._tried[ended.candidate] >= MOST_TRIALS:
            self._lost[ended.candidate] = self._at
            del self._tried[ended.candidate]

    def _fastest(self, estimates: dict[Candidate, Estimate]) -> tuple[Estimate, str]:
        known = [
            one
            for one in estimates.values()
            if one.doubt < KNOWN
            or one.candidate in (BATCH, self._current)
            or one.measured_s is not None
            or one.candidate.arrangement in self._unclean
        ]
        best = min(one.seconds for one in known)
        chosen = next(one for one in known if one.seconds * (1 - TIE) <= best)  # simplest first
        current = estimates.get(self._current)
        if current is None or current.candidate == chosen.candidate:
            return chosen, "fastest"
        gain = 1 - best / current.seconds
        simpler = current in known and known.index(chosen) < known.index(current)
        sure = 0.0 if simpler else 2 * math.hypot(chosen.doubt, current.doubt)
        if gain > MARGIN or gain > max(TIE, sure):
            return chosen, f"{gain:.1%} faster than {current.candidate}"
        return current, f"{chosen.candidate} is not enough faster"

    def _next_trial(
        self, estimates: dict[Candidate, Estimate], chosen: Estimate
    ) -> Estimate | None:
        best = chosen.seconds
        allowed = FREE_TRIALS * best + TRIAL_SHARE * self._elapsed_s - self._spent_s
        for one in sorted(estimates.values(), key=lambda one: one.seconds):
            if one.candidate == chosen.candidate or one.candidate in self._lost:
                continue
            if one.candidate.arrangement in self._unclean:  # a trial would tell nothing new
                continue
            loss = SWITCH_CYCLES * best + TRIAL_CYCLES * max(0.0, one.seconds - best)
            if one.low < best * (1 - MARGIN) and loss <= allowed:
                return one
        return None


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
