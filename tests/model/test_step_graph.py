"""Captured decode steps: the same bits as without, whatever the bucket, lengths and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import override
from kernels.attention.reference import attention as reference_attention
from kernels.errors import UnsupportedError
from model.config import LlamaConfig
from model.paged_batch import Packing
from model.parity_weights import ParityWeights
from model.rope_scaling import RopeScaling
from model.stage import DecodeRow, LlamaStage, StageSpec
from model.step_graph import BUCKETS, CudaCapture, StepGraphs
from tests.devices import DEVICE

CONFIG = LlamaConfig.from_dict(
    {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 31,
        "max_position_embeddings": 40,
        "sliding_window": 7,
        "use_sliding_window": True,
        "max_window_layers": 1,
    }
)
# Its angles depend on the length, past 8 tokens.
DYNAMIC = replace(
    CONFIG,
    max_position_embeddings=8,
    rope_scaling=RopeScaling("dynamic", factor=4.0),
)
PROMPTS = {"a": [1, 2, 3], "b": [4], "c": [5, 6, 7, 8, 9, 10, 11, 12]}
# Sizes go up and down within buckets and across them, and lengths across blocks of 4.
STEPS = ["a", "c", "abc", "ca", "b", "cba", "abc", "abc", "ba"]


class Rerun:
    """Stands in for a graph: runs the function again, on the same static inputs."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.captured += 1
        result = step().clone()

        def replay() -> None:
            self.replayed += 1
            result.copy_(step())

        return result, replay


def load(kv_dtype: str = "int8", config: LlamaConfig = CONFIG, **options: Any) -> list[LlamaStage]:
    """Two stages, so that a step begins with tokens or with hidden states."""
    specs = StageSpec(range(1), embed=True, head=False), StageSpec(range(1, 2), False, True)
    return [
        LlamaStage.load(
            ParityWeights(config),
            spec,
            impl="triton",
            device=DEVICE,
            kv_dtype=kv_dtype,
            block_size=4,
            **options,
        )
        for spec in specs
    ]


def capturing(stages: list[LlamaStage], capture: Rerun) -> None:
    """Let the stages' steps be captured."""
    for stage in stages:
        stage._graphs = StepGraphs(capture, stage.cache.max_blocks, stage.device)


def run(stages: list[LlamaStage], steps: list[str] = STEPS) -> list[Tensor]:
    """Hidden states of all prompts and steps."""
    results = []
    for name, prompt in PROMPTS.items():
        hidden = stages[0].prefill_tokens(name, prompt)
        results += [hidden, stages[1].prefill_hidden(name, hidden)]
    for number, step in enumerate(steps):
        rows = [
            DecodeRow(name, (3 * number + place) % 31, stages[0].cache_len(name))
            for place, name in enumerate(step)
        ]
        hidden = stages[0].decode_tokens(rows)
        results += [hidden, stages[1].decode_hidden(rows, hidden)]
    return results


def pools(stages: list[LlamaStage]) -> list[Tensor]:
    """All that the caches hold, unused slots as well."""
    layers = [pool for stage in stages for pool in stage.cache.pools]
    tensors = [t for pool in layers for t in (pool.k, pool.v, pool.k_scale, pool.v_scale)]
    return [tensor for tensor in tensors if tensor is not None]


@pytest.mark.parametrize(("kv_dtype", "config"), [("int8", CONFIG), ("fp32", DYNAMIC)])
def test_captured_steps_give_the_bits_of_steps_that_are_not(
    kv_dtype: str, config: LlamaConfig
) -> None:
    eager = load(kv_dtype, config, cuda_graphs=False)
    captured, capture = load(kv_dtype, config), Rerun()
    if DEVICE == "cpu":
        capturing(captured, capture)
    expected, actual = run(eager), run(captured)
    assert all(torch.equal(*pair) for pair in zip(expected, actual, strict=True))
    assert all(torch.equal(*pair) for pair in zip(pools(eager), pools(captured), strict=True))
    assert all(stage._graphs.captured == [1, 2, 4] for stage in captured)
    if DEVICE == "cpu":
        assert capture.captured == 3 * 2  # in two stages
        assert capture.replayed == len(STEPS) * 2


def test_a_result_outlives_the_next_step() -> None:
    stages = load()
    if DEVICE == "cpu":
        capturing(stages, Rerun())
    stage = stages[0]
    first = stage.decode_tokens([("a", 1, 0)])
    before = first.clone()
    stage.decode_tokens([("b", 2, 0)])
    assert torch.equal(first, before)


def test_an_override_is_not_passed_over() -> None:
    stages, capture = load("fp32"), Rerun()
    capturing(stages, capture)
    stage = stages[0]
    stage.decode_tokens([("a", 1, 0)])
    assert capture.replayed == 1
    seen = []

    def noted(*args: Any, **options: Any) -> Tensor:
        seen.append(options)
        return reference_attention(*args, **options)

    with override("attention", noted):
        stage.decode_tokens([("a", 1, 1)])
    assert len(seen) == 1
    assert capture.replayed == 1
    stage.decode_tokens([("a", 1, 2)])
    assert capture.replayed == 2


def test_a_failing_step_is_not_kept_and_changes_nothing() -> None:
    [stage, _] = load()
    outcomes = iter([UnsupportedError("no graph"), None])
    rerun = Rerun()

    def capture(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        if (error := next(outcomes)) is not None:
            raise error
        return rerun(step)

    stage._graphs = StepGraphs(capture, stage.cache.max_blocks, stage.device)
    with pytest.raises(UnsupportedError, match="no graph"):
        stage.decode_tokens([("a", 1, 0)])
    assert stage.cache.sequence_ids() == []
    stage.decode_tokens([("a", 1, 0)])
    assert rerun.captured == rerun.replayed == 1


def test_a_capture_that_fails_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def graph(*args: Any, **options: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    capture = CudaCapture(torch.device("cuda"))
    with pytest.raises(UnsupportedError, match=r"not permitted .*; cuda_graphs=False runs it"):
        capture._captured(lambda: torch.zeros(1))


def test_larger_batches_are_not_captured() -> None:
    graphs = StepGraphs(Rerun(), 1, torch.device(DEVICE))
    assert graphs.takes(1)
    assert graphs.takes(BUCKETS[-1])
    assert not graphs.takes(BUCKETS[-1] + 1)


class _NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU: numbers of tensors, and shapes that depend on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "is_nonzero")
        assert not any(name in str(func) for name in waits), func
        return func(*args, **(kwargs or {}))


def test_no_operation_waits_for_the_device() -> None:
    stages = load()
    if DEVICE == "cuda":
        run(stages, ["abc"])  # compiles and captures, which does wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _NoWaiting():
            hidden = run(stages, ["abc"])[-1]
            stages[1].greedy(hidden)
            stages[1].logits(hidden)
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_packed_tensors_are_aligned_and_apart() -> None:
    tensors = [
        torch.arange(3, dtype=torch.int32),
        torch.arange(10, 15),
        torch.zeros(0, 4, dtype=torch.int32),
        torch.arange(6, dtype=torch.int32).view(2, 3),
    ]
    packing = Packing.of(tensors)
    buffer = packing.buffer(torch.device("cpu"))
    views = packing.views(buffer)
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
        assert view.storage_offset() * view.itemsize % 16 == 0
    for view, tensor in zip(packing.views(buffer.clone()), tensors, strict=True):
        assert torch.equal(view, tensor)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs --device cuda")
def test_repr_says_how_steps_run() -> None:
    assert "decode=cuda graphs" in repr(load()[0])
    assert "decode=eager" in repr(load(cuda_graphs=False)[0])
