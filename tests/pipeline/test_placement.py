"""Placements: how splits are read, what they become, and the error of each wrong one."""

from __future__ import annotations

import pytest

from kernels.errors import InvalidInputError
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement, StagePlacement
from pipeline.splits import Splits


def layers(placement: Placement) -> list[range]:
    return [stage.layers for stage in placement.stages]


@pytest.mark.parametrize(
    "splits",
    [[1, 2], (1, 2), "1,2", " 1 , 2 ", "0-0,1-2", "0 - 0, 1 - 2", [range(1), range(1, 3)]],
)
def test_splits_are_counts_or_ranges(splits: Splits) -> None:
    assert layers(Placement.from_splits(3, splits)) == [range(1), range(1, 3)]


@pytest.mark.parametrize(
    ("num_layers", "splits", "message"),
    [
        (4, "0-0,2-3", "stage 1 range starts at 2, expected 1"),  # gap
        (4, "0-2,2-3", "stage 1 range starts at 2, expected 3"),  # overlap
        (4, "1-3", "stage 0 range starts at 1, expected 0"),
        (4, "2-3,0-1", "stage 0 range starts at 2, expected 0"),
        (4, [1, 2], r"stages cover 3 layers but model has 4 \(stage 1 starts at 1\)"),
        (2, "1,2", "stages cover 3 layers but model has 2"),
        (3, [1, 0, 2], "stage 1 has no layers; expected at least one starting at 1"),
        (3, [range(2, 1), range(2, 3)], "stage 0 range starts at 2, expected 0"),
        (3, [range(2), range(2, 2), range(2, 3)], "stage 1 has no layers"),
        (3, [4, -1], "stage 1 has no layers"),
        (4, [range(0, 4, 2)], r"stage 0: range\(0, 4, 2\) has a step other than 1"),
        (3, [], "splits are \\[\\]; expected layer counts or range objects"),
        (3, [1, range(1, 3)], "expected layer counts or range objects"),
        (3, [1.0, 2.0], "expected layer counts or range objects"),
        (3, [True, 2], "expected layer counts or range objects"),
        (3, "1,x", "'x' is neither"),
        (3, "1,-2", "'-2' is neither"),
        (3, "", "'' is neither"),
        (3, "1,1-2", "it mixes both"),
    ],
)
def test_wrong_splits_name_what_is_wrong(num_layers: int, splits: Splits, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Placement.from_splits(num_layers, splits)


@pytest.mark.parametrize(
    ("num_layers", "stages", "counts"),
    [(3, 1, [3]), (4, 2, [2, 2]), (3, 2, [2, 1]), (7, 3, [3, 2, 2]), (3, 3, [1, 1, 1])],
)
def test_even_gives_the_odd_layers_to_earlier_stages(
    num_layers: int, stages: int, counts: list[int]
) -> None:
    placed = layers(Placement.even(num_layers, stages))
    assert [len(part) for part in placed] == counts
    assert [layer for part in placed for layer in part] == list(range(num_layers))


@pytest.mark.parametrize("stages", [0, -1, 4])
def test_even_refuses_a_number_of_stages_that_cannot_be(stages: int) -> None:
    with pytest.raises(InvalidInputError, match=f"3 layers into {stages} stages; expected 1 to 3"):
        Placement.even(3, stages)


def test_ordinals_must_be_as_many_as_stages() -> None:
    with pytest.raises(InvalidInputError, match="stage device count 1 must match stage count 2"):
        Placement.even(4, 2, ordinals=[0])


def test_a_placement_reads_as_the_plan_prints_it() -> None:
    placement = Placement.from_splits(80, "40,40", ordinals=[0, 1])
    assert str(placement) == "stage0:cuda:0:layers=0-39;stage1:cuda:1:layers=40-79"
    assert placement.stage_device_ordinals == [0, 1]
    unplaced = Placement.even(3, 2)
    assert str(unplaced) == "stage0:cpu:layers=0-1;stage1:cpu:layers=2-2"
    assert unplaced.describe("cuda:0").startswith("stage0:cuda:0:layers=0-1;")


def test_the_mode_has_a_default_and_can_be_changed() -> None:
    placement = Placement.even(4, 2)
    assert placement.mode is LlamaPipelineMode.OVERLAPPED
    assert placement.with_mode("BATCH").mode is LlamaPipelineMode.BATCH
    assert Placement.even(4, 3).mode is LlamaPipelineMode.BATCH
    assert Placement.even(4, 3, mode="overlapped").mode is LlamaPipelineMode.OVERLAPPED


def test_overlapped_needs_two_stages() -> None:
    with pytest.raises(InvalidInputError, match="requires at least two stages, got 1"):
        Placement.even(4, 1, mode="overlapped")


def test_a_placement_needs_a_stage() -> None:
    with pytest.raises(InvalidInputError, match="requires at least one stage"):
        Placement((), LlamaPipelineMode.BATCH)


def test_placements_are_values() -> None:
    assert Placement.even(4, 2) == Placement.from_splits(4, [2, 2])
    assert hash(StagePlacement(range(3))) == hash(StagePlacement(range(3)))
