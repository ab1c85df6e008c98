"""The tests of the Rust origin, with its weights, batches and expected metrics.

`full` is the whole model as one stage. Two tests beside the origin's seven cover what its
placement and its mode refuse.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode, StageBridge, Transport
from pipeline.placement import Placement
from tests.devices import DEVICE
from tests.pipeline.building import load_stage, parity_config, parity_pipeline, parity_stages

Pair = tuple[LlamaPipeline, LlamaPipeline]


def assert_logits_close(label: str, expected: torch.Tensor, actual: torch.Tensor) -> None:
    assert expected.shape == actual.shape, f"{label} shape mismatch"
    worst = float((expected - actual).abs().max())
    assert worst < 1e-5, f"{label} logits diverged: max_diff={worst}"


KV_DTYPES = ("fp16", "int8", "bf16", "fp32")
# Interpreted kernels take their time: the layout with most to it.
COMBINATIONS = [(impl, kv) for impl in ("cpu", "reference") for kv in KV_DTYPES]
COMBINATIONS += [("triton", kv) for kv in (KV_DTYPES if DEVICE == "cuda" else ("int8",))]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def kernels(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(impl, kv_dtype)."""
    return request.param


@pytest.fixture
def mode() -> LlamaPipelineMode | None:
    return None


@pytest.fixture
def models(kernels: tuple[str, str], mode: LlamaPipelineMode | None) -> Iterator[Pair]:
    """(full, pipeline)."""
    impl, kv_dtype = kernels
    device = DEVICE if impl == "triton" else "cpu"
    options = {"impl": impl, "kv_dtype": kv_dtype, "device": device}
    with (
        parity_pipeline([3], **options) as full,
        parity_pipeline([1, 2], mode=mode, **options) as pipeline,
    ):
        yield full, pipeline


def batch(name: str, tokens: list[int], positions: list[int]) -> list[tuple[str, int, int]]:
    return [
        (f"{name}_{row}", token, position)
        for row, (token, position) in enumerate(zip(tokens, positions, strict=True))
    ]


def prefill_rows(models: Pair, rows: int, longest: int) -> list[int]:
    """Prefill row i with 1 + i % longest tokens in both; the lengths."""
    full, pipeline = models
    lengths = [1 + row % longest for row in range(rows)]
    for row, length in enumerate(lengths):
        tokens = [(row + offset) % 7 for offset in range(length)]
        full.prefill(f"full_{row}", tokens)
        pipeline.prefill(f"pipe_{row}", tokens)
    return lengths


def assert_bridge_was_timed(decode: dict) -> None:
    assert decode["host_bridge_bytes_total"] > 0
    assert decode["bridge_us_total"] > 0
    assert decode["host_copy_us_total"] > 0
    assert decode["host_copy_us_total"] + decode["device_copy_us_total"] > 0


def test_pipeline_prefill_matches_full_model_on_multi_token_cpu_model(models: Pair) -> None:
    full, pipeline = models
    full_logits = full.prefill("full", [0, 1, 2, 3])
    pipeline_logits = pipeline.prefill("pipe", [0, 1, 2, 3])

    assert pipeline.config.num_hidden_layers == 3
    assert len(pipeline.stages) == 2
    assert pipeline.placement.stage_device_ordinals == [None, None]
    assert pipeline.placement.transport is Transport.HOST_HIDDEN_BRIDGE
    metrics = pipeline.cache_metrics_snapshot()
    assert metrics["selected_pipeline_mode"] == "overlapped"
    assert metrics["selected_stage_bridge"] == "host"
    assert metrics["pipeline_decode"]["calls"] == 0
    assert_logits_close("multi-token prefill", full_logits, pipeline_logits)


def test_pipeline_decode_after_multi_token_prefill_matches_full_model(models: Pair) -> None:
    full, pipeline = models
    full.prefill("full", [0, 1, 2])
    pipeline.prefill("pipe", [0, 1, 2])
    for token, position in ((3, 3), (4, 4)):
        expected = full.decode("full", token, position)
        actual = pipeline.decode("pipe", token, position)
        assert_logits_close(f"decode pos {position}", expected, actual)

    decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    assert decode["calls"] == 2
    assert decode["overlapped_calls"] == 0
    assert decode["rows"] == 2
    assert decode["max_batch"] == 1
    assert len(decode["stage_us_last"]) == len(pipeline.stages)
    assert_bridge_was_timed(decode)


def test_pipeline_decode_batch_matches_full_model_and_preserves_order(models: Pair) -> None:
    full, pipeline = models
    lengths = prefill_rows(models, rows=16, longest=4)
    for step, shift in enumerate((5, 1)):
        tokens = [(row + shift) % 7 for row in range(16)]
        positions = [length + step for length in lengths]
        expected = full.decode_batch(batch("full", tokens, positions))
        actual = pipeline.decode_batch(batch("pipe", tokens, positions))
        assert len(actual) == 16
        for row in range(16):
            assert_logits_close(f"decode batch {step} row {row}", expected[row], actual[row])

    decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    assert decode["calls"] == 2
    assert decode["overlapped_calls"] == 2
    assert decode["rows"] == 32
    assert decode["max_batch"] == 16
    assert decode["last_batch"] == 16
    assert decode["microbatch_count_max"] == 2
    assert decode["microbatch_size_max"] == 8
    assert decode["in_flight_stage_count_max"] == 2
    assert decode["queue_depth_max"] == 1
    assert decode["host_bridge_bytes_total"] == 2 * 16 * 4 * 4
    assert len(decode["stage_us_last"]) == len(pipeline.stages)
    assert_bridge_was_timed(decode)


def test_pipeline_overlapped_mode_keeps_small_batches_whole(models: Pair) -> None:
    full, pipeline = models
    lengths = prefill_rows(models, rows=8, longest=3)
    tokens = [(row + 5) % 7 for row in range(8)]
    expected = full.decode_batch(batch("full", tokens, lengths))
    actual = pipeline.decode_batch(batch("pipe", tokens, lengths))
    assert len(actual) == 8
    for row in range(8):
        assert_logits_close(f"small batch row {row}", expected[row], actual[row])

    metrics = pipeline.cache_metrics_snapshot()
    decode = metrics["pipeline_decode"]
    assert metrics["selected_pipeline_mode"] == "overlapped"
    assert decode["calls"] == 1
    assert decode["overlapped_calls"] == 0
    assert decode["max_batch"] == 8
    assert decode["microbatch_count_max"] == 1
    assert decode["microbatch_size_max"] == 8
    assert decode["in_flight_stage_count_max"] == 1
    assert decode["queue_depth_max"] == 0


@pytest.mark.parametrize("mode", [LlamaPipelineMode.BATCH])
def test_pipeline_batch_mode_uses_stage_batch_without_overlap(models: Pair) -> None:
    full, pipeline = models
    for row, tokens in enumerate(([0, 1], [2, 3, 4])):
        full.prefill(f"full_{row}", tokens)
        pipeline.prefill(f"pipe_{row}", tokens)
    expected = full.decode_batch(batch("full", [5, 6], [2, 3]))
    actual = pipeline.decode_batch(batch("pipe", [5, 6], [2, 3]))
    assert_logits_close("batch mode row 0", expected[0], actual[0])
    assert_logits_close("batch mode row 1", expected[1], actual[1])

    metrics = pipeline.cache_metrics_snapshot()
    decode = metrics["pipeline_decode"]
    assert metrics["selected_pipeline_mode"] == "batch"
    assert decode["calls"] == 1
    assert decode["overlapped_calls"] == 0
    assert decode["microbatch_count_max"] == 1
    assert decode["microbatch_size_max"] == 2
    assert decode["in_flight_stage_count_max"] == 1
    assert decode["queue_depth_max"] == 0


def test_pipeline_incremental_prefill_matches_full_model_position_offset(models: Pair) -> None:
    full, pipeline = models
    full.prefill("full", [0, 1])
    pipeline.prefill("pipe", [0, 1])
    expected = full.prefill("full", [2, 3])
    actual = pipeline.prefill("pipe", [2, 3])
    assert_logits_close("incremental prefill", expected, actual)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_pipeline_rejects_device_ordinals_without_backend_scope_support(impl: str) -> None:
    stages = parity_stages([1, 1], impl=impl)
    placement = Placement.from_splits(2, [1, 1], ordinals=[0, 1])
    with pytest.raises(UnsupportedError, match="does not support device-scoped execution"):
        LlamaPipeline(stages, placement)


def test_pipeline_rejects_stage_ranges_that_do_not_follow_each_other() -> None:
    config = parity_config(3)
    stages = [
        load_stage(range(1), embed=True, head=False, config=config),
        load_stage(range(2, 3), embed=False, head=True, config=config),
    ]
    with pytest.raises(InvalidInputError, match="stage 1 range starts at 2, expected 1"):
        LlamaPipeline(stages)


def test_pipeline_mode_is_parsed_and_has_a_default() -> None:
    assert LlamaPipelineMode.parse(" Overlapped\n") is LlamaPipelineMode.OVERLAPPED
    assert LlamaPipelineMode.default_for_stage_count(2) is LlamaPipelineMode.OVERLAPPED
    assert LlamaPipelineMode.default_for_stage_count(3) is LlamaPipelineMode.BATCH
    assert Placement.even(2, 2).stage_bridge is StageBridge.HOST
    with pytest.raises(
        InvalidInputError,
        match=r"^layer_split_pipeline_mode must be batch, overlapped, continuous or auto, got "
        r'"warp"$',
    ):
        LlamaPipelineMode.parse(" Warp ")
