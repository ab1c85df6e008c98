"""What the choice of mode rests on, as data and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kernels.errors import InvalidInputError
from pipeline.candidates import Arrangement, Candidate, candidates
from pipeline.cost_model import CostModel
from pipeline.estimates import Estimate
from pipeline.stage_cost import Guesses, StageCost, check_sizes


@dataclass(frozen=True)
class Entry:
    """A candidate and what became of it."""

    estimate: Estimate
    tokens_per_s: float
    why: str


@dataclass(frozen=True)
class Explanation:
    """All candidates for `rows` sequences with `cached` tokens each, and what the model holds.

    `stages` are costs in seconds, and `hops` seconds per hand-over and per byte, by arrangement.
    """

    rows: int
    cached: float
    chosen: Candidate
    reason: str
    entries: tuple[Entry, ...]
    stages: dict[Arrangement, tuple[StageCost, ...]]
    hops: dict[Arrangement, tuple[tuple[float, float], ...]]
    stall_share: float

    @classmethod
    def of(
        cls,
        model: CostModel,
        rows: int,
        cached: float,
        estimates: Sequence[Estimate],
        chosen: Candidate,
        reason: str,
        lost: frozenset[Candidate] = frozenset(),
    ) -> Explanation:
        """Of `chosen` among `estimates`, where `lost` were tried and found slower."""
        times = {one.candidate: one.seconds for one in estimates}
        entries = []
        for one in estimates:
            if one.candidate == chosen:
                why = f"chosen: {reason}"
            else:
                slower = one.seconds / times[chosen] - 1
                why = (
                    f"{slower:.1%} slower" if slower >= 0 else f"{-slower:.1%} faster, not yet sure"
                )
                why += ", tried" if one.candidate in lost else ""
            entries.append(Entry(one, rows / one.seconds, why))
        costs = {kind: model.stage_costs(kind) for kind in Arrangement}
        return cls(
            rows,
            cached,
            chosen,
            reason,
            tuple(entries),
            {kind: tuple(of or ()) for kind, of in costs.items()},
            {kind: tuple(model.hop_costs(kind)) for kind in Arrangement},
            model.stall_share,
        )

    def json(self) -> dict[str, Any]:
        """Everything, in types that JSON has; times in seconds."""
        return {
            "rows": self.rows,
            "cached": self.cached,
            "mode": self.chosen.mode.value,
            "groups": self.chosen.groups,
            "reason": self.reason,
            "candidates": [
                {
                    "mode": entry.estimate.candidate.mode.value,
                    "groups": entry.estimate.candidate.groups,
                    "predicted_cycle_s": entry.estimate.predicted_s,
                    "measured_cycle_s": entry.estimate.measured_s,
                    "cycle_s": entry.estimate.seconds,
                    "doubt": entry.estimate.doubt,
                    "tokens_per_s": entry.tokens_per_s,
                    "why": entry.why,
                }
                for entry in self.entries
            ],
            "stages": {
                kind.value: [asdict(cost) for cost in costs] for kind, costs in self.stages.items()
            },
            "hops": {
                kind.value: [{"per_call": p, "per_byte": q} for p, q in costs]
                for kind, costs in self.hops.items()
            },
            "stall_share": self.stall_share,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and a line of text per candidate; times in milliseconds."""
        headings = ["mode", "groups", "predicted ms", "measured ms", "tokens/s", "why"]
        lines = [
            [
                entry.estimate.candidate.mode.value,
                str(entry.estimate.candidate.groups),
                _ms(entry.estimate.predicted_s),
                _ms(entry.estimate.measured_s),
                f"{entry.tokens_per_s:.4g}",
                entry.why,
            ]
            for entry in self.entries
        ]
        return headings, lines


def predict_all(
    rows: int,
    cached: float,
    guesses: Guesses,
    hops: Sequence[tuple[float, float]] = (),
    row_bytes: int = 0,
) -> Explanation:
    """What is to be expected before anything ran: the fastest by the guesses, and all others.

    `guesses` are costs of each stage as the cost model takes them, `hops` seconds per hand-over
    and per byte of each hop, for `row_bytes` a row. Ties go to the simplest.
    Raises `InvalidInputError` for absurd sizes and costs, and for stages that do not match.
    """
    check_sizes(rows, cached)
    if Arrangement.TURNS not in guesses:
        raise InvalidInputError("predict_all needs guesses of stages that take turns, got none")
    model = CostModel(len(guesses[Arrangement.TURNS]), row_bytes, guesses, hops)
    estimates = []
    for one in candidates(model.stage_count, rows):
        predicted = model.predict(one, rows, cached)
        assert predicted is not None  # guessed
        seconds = predicted.seconds
        estimates.append(Estimate(one, seconds, None, seconds, predicted.low, predicted.doubt))
    best = min(estimates, key=lambda one: one.seconds)
    return Explanation.of(model, rows, cached, estimates, best.candidate, "fastest by guesses")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.4g}"
