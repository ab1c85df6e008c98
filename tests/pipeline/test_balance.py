"""Placement by weight and memory: what parts cost, where the cuts go, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import CapacityError, InvalidInputError
from model.bundled_model import bundled_model_path
from model.checkpoint import Checkpoint
from model.config import LlamaConfig
from model.stage import LlamaStage, StageSpec
from model.weights import WeightSource
from pipeline.balance import balanced, device_loads, imbalance, require_room, stage_costs
from pipeline.device_profile import DeviceProfile
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.loading import place, stage_specs
from pipeline.placement import Placement
from pipeline.step_cost import CPU_ATTENTION_PASSES, DecodeStep, LoadOptions, PartCosts
from tests.pipeline.random_model import RandomModel, RandomWeights, models

CPU = DeviceProfile("cpu", 2.0**34, 2.0**37, 2.0**38, 2.0**37, None, "assumed")
GPU = replace(CPU.scaled(64), name="cuda:0")
LOAD = LoadOptions(kv_tokens=4096)
LLAMA_1B = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128256,
    max_position_embeddings=131072,
)


class Tied(RandomWeights):
    """Without a head of its own."""

    def has(self, name: str) -> bool:
        return name != "lm_head.weight" and super().has(name)


def source(config: LlamaConfig = LLAMA_1B) -> RandomWeights:
    return RandomWeights(config, 0, torch.bfloat16)


def counts(placement: Placement) -> list[int]:
    return [len(stage.layers) for stage in placement.stages]


def cut(weights: WeightSource, profiles: list[DeviceProfile]) -> Placement:
    even = Placement.even(weights.config.num_hidden_layers, len(profiles))
    return balanced(weights, even, profiles, LOAD)


def test_the_head_counts_as_layers() -> None:
    # 128256 x 2048 weights, of 60.8 M in a layer: 4.3 layers, less with attention counted.
    assert counts(cut(source(), [CPU, CPU])) == [9, 7]
    assert counts(cut(source(), [CPU] * 4)) == [4, 5, 5, 2]
    assert counts(cut(source(), [replace(GPU, name=f"cuda:{i}") for i in range(4)])) == [5, 5, 5, 1]


def test_the_longer_the_sequences_the_less_the_head_counts() -> None:
    even = Placement.even(16, 2)
    for context, expected in ((1, [10, 6]), (100_000, [8, 8])):
        step = DecodeStep(16, context)
        assert counts(balanced(source(), even, [CPU, CPU], LOAD, step)) == expected


def test_a_stage_has_a_rope_table() -> None:
    short, long = (
        PartCosts(source(), CPU, replace(LOAD, max_seq_len=n), DecodeStep()).ends(
            embed=False, head=False
        )
        for n in (1000, 3000)
    )
    small = replace(LLAMA_1B, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    stage = LlamaStage.load(
        RandomWeights(small, 0, torch.bfloat16),
        StageSpec(range(1), embed=False, head=False),
        max_seq_len=3000,
        kv_tokens=16,
    )
    assert stage._rope.nbytes == 3000 * 64 * 4
    assert long.nbytes - short.nbytes == 2000 * 64 * 4


def test_an_embedding_takes_memory_and_no_time() -> None:
    parts = PartCosts(source(), CPU, LOAD, DecodeStep())
    nothing, embed = (parts.ends(embed=has, head=False) for has in (False, True))
    assert nothing.picoseconds == 0
    assert embed.weight_bytes == 2 * 128256 * 2048
    assert 0 < embed.seconds < parts.layer(0).seconds / 100


def test_tied_ends_count_once_in_a_stage_and_twice_apart() -> None:
    tied = PartCosts(Tied(LLAMA_1B, 0, torch.bfloat16), CPU, LOAD, DecodeStep())
    apart = PartCosts(source(), CPU, LOAD, DecodeStep())
    table, norm = 2 * 128256 * 2048, 2 * 2048
    assert tied.ends(embed=True, head=True).weight_bytes == table + norm
    assert apart.ends(embed=True, head=True).weight_bytes == 2 * table + norm
    for parts in (tied, apart):
        assert parts.ends(embed=True, head=False).weight_bytes == table
        assert parts.ends(embed=False, head=True).weight_bytes == table + norm


def test_a_part_takes_the_longer_of_bytes_and_operations() -> None:
    few = PartCosts(source(), CPU, LOAD, DecodeStep(rows=1, context=1)).ends(embed=False, head=True)
    many = PartCosts(source(), CPU, LOAD, DecodeStep(rows=64, context=1))
    weights, logits = 128256 * 2048, 128256 * 4
    assert few.seconds == pytest.approx((2 * weights + 2 * logits) / 2.0**34)
    seconds = 2 * 64 * weights / 2.0**38 + 64 * 2 * logits / 2.0**34
    assert many.ends(embed=False, head=True).seconds == pytest.approx(seconds)


def test_attention_reads_what_its_window_shows() -> None:
    kinds = ("sliding_attention", "full_attention") * 8
    config = replace(LLAMA_1B, model_type="qwen2", sliding_window=256, layer_types=kinds)
    parts = PartCosts(source(config), CPU, LOAD, DecodeStep(rows=8, context=1024))
    per_token = 2 * 8 * 64 * 2  # K and V of 8 heads in bfloat16
    reads = CPU_ATTENTION_PASSES * 8 * (1024 - 256) * per_token / 2.0**34
    assert parts.layer(1).seconds - parts.layer(0).seconds == pytest.approx(reads, rel=1e-6)
    assert parts.layer(1).kv_bytes == parts.layer(0).kv_bytes == 4096 * per_token


def test_no_more_context_than_a_sequence_may_have() -> None:
    short = replace(LOAD, max_seq_len=512)
    capped, plain = (
        PartCosts(source(), CPU, short, DecodeStep(context=context)) for context in (10**6, 512)
    )
    assert capped.layer(0) == plain.layer(0)


@given(models(impls=["reference"]), st.data())
@settings(max_examples=10, deadline=None)
def test_bytes_are_those_of_loaded_stages(model: RandomModel, data: st.DataObject) -> None:
    layers = model.config.num_hidden_layers
    placement = Placement.even(layers, data.draw(st.integers(1, layers)))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[model.dtype]
    weights = RandomWeights(model.config, 0, dtype)
    options: dict[str, Any] = {"kv_dtype": model.kv_dtype, "block_size": model.block_size}
    load = LoadOptions("reference", **options)
    costs = stage_costs(weights, placement, [CPU] * len(placement), load, DecodeStep())
    for spec, cost in zip(stage_specs(placement), costs, strict=True):
        stage = LlamaStage.load(weights, spec, impl="reference", **options)
        assert (cost.weight_bytes, cost.kv_bytes) == (stage.weight_bytes, stage.kv_bytes)


def test_stages_that_work_at_once_share_a_device() -> None:
    def times(mode: str) -> list[int]:
        placement = Placement.even(16, 2, mode=mode)
        costs = stage_costs(source(), placement, [CPU, CPU], LOAD, DecodeStep())
        return [cost.picoseconds for cost in costs]

    assert times("overlapped") == pytest.approx([2 * alone for alone in times("batch")])


def test_a_faster_device_gets_more_layers() -> None:
    assert counts(cut(source(), [GPU, CPU])) == [15, 1]
    assert counts(cut(source(), [CPU, GPU])) == [1, 15]


def test_memory_pushes_layers_elsewhere() -> None:
    small = replace(GPU, memory_bytes=1 << 30)
    placement = cut(source(), [small, replace(CPU, memory_bytes=8 << 30)])
    assert 1 <= len(placement.stages[0].layers) < 15
    profiles = [small, replace(CPU, memory_bytes=8 << 30)]
    costs = stage_costs(source(), placement, profiles, LOAD, DecodeStep())
    require_room(placement, device_loads(costs, profiles))
    # One more layer would not have fitted.
    layer = PartCosts(source(), small, LOAD, DecodeStep()).layer(0).nbytes
    assert costs[0].nbytes <= 1 << 30 < costs[0].nbytes + layer


def test_what_is_missing_is_named_by_stage_and_bytes() -> None:
    profiles = [replace(GPU, memory_bytes=1 << 30), replace(CPU, memory_bytes=1 << 30)]
    placement = cut(source(), profiles)
    costs = stage_costs(source(), placement, profiles, LOAD, DecodeStep())
    loads = device_loads(costs, profiles)
    lacking = [cost.nbytes - (1 << 30) for cost in costs]
    assert [load.lacking_bytes for load in loads] == [max(0, some) for some in lacking]
    message = (
        rf"no cut into 2 stages fits.* stage 1 \(layers \d+-15\) on cpu needs {costs[1].nbytes} "
        rf"bytes and has {1 << 30}: {lacking[1]} bytes are missing"
    )
    with pytest.raises(CapacityError, match=message):
        require_room(placement, loads)


def test_stages_of_one_device_are_refused_together() -> None:
    profiles = [replace(CPU, memory_bytes=3 << 30)] * 2
    placement = cut(source(), profiles)  # each by itself would fit
    loads = device_loads(stage_costs(source(), placement, profiles, LOAD, DecodeStep()), profiles)
    [load] = loads
    assert load.stages == (0, 1)
    message = rf"stages 0 \(layers 0-8\), 1 \(layers 9-15\) on cpu need {load.needed_bytes} bytes"
    with pytest.raises(CapacityError, match=message):
        require_room(placement, loads)


def test_imbalance_is_the_share_spent_waiting() -> None:
    even = Placement.from_splits(16, "8,8", mode="batch")
    costs = stage_costs(source(), even, [CPU, CPU], LOAD, DecodeStep())
    fast, slow = costs[0].seconds, costs[1].seconds
    assert imbalance(costs) == pytest.approx((slow - fast) / (2 * slow))
    assert imbalance(costs[:1]) == 0


@pytest.mark.parametrize("field", ["rows", "context"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_step_needs_rows_and_context(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{field} is {value}"):
        DecodeStep(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_dtype": "fp4"}, "kv_dtype is 'fp4'"),
        ({"dtype": "fp4"}, "dtype is 'fp4'"),
        ({"impl": "fast"}, "fast"),
        ({"block_size": 0}, "block_size is 0"),
        ({"kv_tokens": 1.5}, "kv_tokens is 1.5"),
        ({"max_seq_len": 10**9}, "max_seq_len is 1000000000"),
    ],
)
def test_options_that_cannot_be_loaded_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        place(source(), 2, load=LoadOptions(**options))


def test_a_pipeline_that_does_not_fit_is_refused_unless_it_is_cut_by_hand() -> None:
    room: dict[str, Any] = {"kv_tokens": 10**11, "mode": "batch"}
    with pytest.raises(CapacityError, match=r"stages 0 .*, 1 .* on cpu need \d+ bytes and have"):
        LlamaPipeline.from_pretrained(stages=2, **room)
    bundled, load = Checkpoint.open(bundled_model_path()), LoadOptions(kv_tokens=10**11)
    for splits in ("even", "2,2"):
        assert counts(place(bundled, 2, splits, load=load)) == [2, 2]
