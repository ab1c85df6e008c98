"""What modes are expected to take before anything ran."""

from __future__ import annotations

import pytest
import torch

from model.bundled_model import bundled_model_path
from model.checkpoint import Checkpoint
from pipeline.balance import stage_costs
from pipeline.candidates import BATCH
from pipeline.device_profile import DeviceProfile, device_profile
from pipeline.expectation import expected_modes
from pipeline.placement import Placement
from pipeline.step_cost import DecodeStep, LoadOptions


@pytest.mark.parametrize("step", [DecodeStep(1, 1), DecodeStep(16, 64), DecodeStep(64, 512)])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_batch_takes_what_the_stages_take_together(stages: int, step: DecodeStep) -> None:
    source = Checkpoint.open(bundled_model_path())
    profiles: list[DeviceProfile] = [device_profile(torch.device("cpu"))] * stages
    placement = Placement.even(source.config.num_hidden_layers, stages, mode="auto")
    expected = expected_modes(source, placement, profiles, LoadOptions(), step)
    [batch] = [entry for entry in expected.entries if entry.estimate.candidate == BATCH]
    costs = stage_costs(source, placement.with_mode("batch"), profiles, LoadOptions(), step)
    total = sum(cost.seconds for cost in costs)
    # Straight between two points where the roofline is bent: never below it, and not far above.
    assert 0.99 * total <= batch.estimate.seconds <= 1.6 * total
    modes = {entry.estimate.candidate.mode.value for entry in expected.entries}
    alone = stages == 1 or step.rows == 1
    assert modes == ({"batch"} if alone else {"batch", "overlapped", "continuous"})
