"""What each mode is expected to take before anything ran, from rooflines of the stages."""

from __future__ import annotations

from collections.abc import Sequence

from model.weights import WeightSource
from pipeline.balance import stage_costs
from pipeline.candidates import Arrangement
from pipeline.device_profile import DeviceProfile
from pipeline.explanation import Explanation, predict_all
from pipeline.placement import Placement
from pipeline.stage_cost import StageCost
from pipeline.step_cost import DecodeStep, LoadOptions

_MODE_OF = {Arrangement.TURNS: "batch", Arrangement.TOGETHER: "continuous"}


def expected_modes(
    source: WeightSource,
    placement: Placement,
    profiles: Sequence[DeviceProfile],
    load: LoadOptions,
    step: DecodeStep,
) -> Explanation:
    """A prediction for every mode; hand-overs are taken as free.

    A stage's time is taken as straight between one row and the step's rows, and in the cached
    tokens; the roofline is bent in between, so this errs to the slow side for groups.
    """
    guesses = {}
    for arrangement, mode in _MODE_OF.items():
        if mode == "continuous" and len(placement) == 1:
            continue
        placed = placement.with_mode(mode)

        def seconds(rows: int, context: int, placed: Placement = placed) -> list[float]:
            at = DecodeStep(rows, context)
            return [cost.seconds for cost in stage_costs(source, placed, profiles, load, at)]

        few, many = seconds(1, 1), seconds(step.rows + 1, 1)
        long = seconds(step.rows + 1, step.context)
        guesses[arrangement] = [_cost(*times, step) for times in zip(few, many, long, strict=True)]
    return predict_all(step.rows, step.context, guesses)


def _cost(few: float, many: float, long: float, step: DecodeStep) -> StageCost:
    """From the times of 1 and rows + 1 rows, and of the latter with the step's context."""
    per_row = max(0.0, (many - few) / step.rows)
    cached = max(1, step.context - 1) * (step.rows + 1)
    return StageCost(max(0.0, few - per_row), per_row, max(0.0, (long - many) / cached))
