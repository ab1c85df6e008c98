"""What only the Triton attention kernels have: splits summed in one launch, work on the device."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import KVLayout, KVPool, get_op, workspace
from kernels.attention import attention, decode, tunables
from kernels.attention import kernel as attention_kernel
from kernels.case_inputs import Case, Random, paged_cache
from kernels.launch import recording
from kernels.target import Target, assume, for_arch
from tests.devices import DEVICE


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def call(
    counts: list[int],
    lengths: list[int],
    *,
    kv_dtype: str = "bf16",
    heads: tuple[int, int, int] = (4, 2, 16),
    dtype: torch.dtype = torch.bfloat16,
    block_size: int = 8,
) -> tuple[Any, ...]:
    """Positional arguments of a call with poison in all that is unused."""
    hq, hkv, d = heads
    random = Random(Case(f"{counts} {lengths} {kv_dtype} {heads}", {}), DEVICE, 0)
    pool, table = paged_cache(random, KVLayout(kv_dtype, block_size, hkv, d), lengths)
    q = random.normal(sum(counts), hq, d, dtype=dtype)
    return q, pool, int32([0, *accumulate(counts)]), int32(lengths), table


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_within_budget_over_random_shapes(data: st.DataObject) -> None:
    draw = data.draw
    group = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 20]))
    hkv = draw(st.integers(1, 2))
    length = st.one_of(st.integers(0, 40), st.integers(41, 300))
    rows = draw(
        st.lists(
            st.tuples(st.one_of(st.just(1), st.integers(0, 40)), length), min_size=1, max_size=5
        )
    )
    params = {
        "rows": tuple(rows),
        "heads": (group * hkv, hkv, draw(st.sampled_from([8, 16, 40, 64, 80]))),
        "block_size": draw(st.sampled_from([1, 5, 8, 16, 256])),
        "kv_dtype": draw(st.sampled_from(["fp32", "fp16", "bf16", "int8"])),
        "dtype": draw(st.sampled_from(["fp32", "fp16", "bf16"])),
        "window": draw(st.sampled_from([None, 1, 3, 13, 37, 64, 150])),
        "softcap": draw(st.sampled_from([None, None, 5.0])),
    }
    for verdict in get_op("attention").check(Case("drawn", params), "triton", DEVICE):
        assert verdict.ok, (params, verdict)


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 192, 193, 500])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_lengths_at_the_edges_of_splits(length: int, count: int) -> None:
    args = call([count, 1], [length, length - 1], dtype=torch.float32, kv_dtype="fp32")
    expected = attention(*args, impl="reference")
    torch.testing.assert_close(attention(*args, impl="triton"), expected, rtol=2e-5, atol=2e-6)


def test_long_rows_have_longer_splits_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    args = call([1, 1], [700, 130], dtype=torch.float32, kv_dtype="int8")
    expected = attention(*args, impl="reference")
    monkeypatch.setattr(decode, "MAX_SPLITS", 2)
    torch.testing.assert_close(attention(*args, impl="triton"), expected, rtol=2e-5, atol=2e-6)


def test_counters_are_left_at_zero_and_stale_parts_do_not_matter() -> None:
    workspace.clear()
    args = call([1, 1, 1], [400, 0, 129], kv_dtype="int8")
    first = attention(*args, impl="triton")
    buffers = workspace._buffers.by_key
    assert {key[0] for key in buffers} == {
        "attention", "attention parts", "attention statistics"
    }  # fmt: skip
    for key, buffer in buffers.items():
        if key[0] == "attention":
            assert not buffer.any()
        else:
            buffer.fill_(torch.nan)
    assert torch.equal(attention(*args, impl="triton"), first)


@pytest.mark.parametrize("most", [1, 3, 33])
def test_what_the_host_knows_changes_no_bits(most: int) -> None:
    args = call([1, most, 1, 0], [150, max(most, 90), 3, 5], kv_dtype="fp16")
    expected = attention(*args, impl="triton")
    for bound in (most, most + 1, 1000):
        assert torch.equal(attention(*args, max_queries=bound, impl="triton"), expected)


def test_one_query_each_needs_one_launch() -> None:
    with recording() as launches:
        attention(*call([1, 1], [150, 3]), max_queries=1, impl="triton")
    assert [launch.name for launch in launches] == ["attention_decode_kernel"]
    with recording() as launches:
        attention(*call([20], [150]), impl="triton")
    assert [launch.name for launch in launches] == ["attention_prefill_kernel"]
    with recording() as launches:  # without being told, two rows could be one sequence's
        attention(*call([1, 1], [150, 3]), impl="triton")
    assert [launch.name for launch in launches] == [
        "attention_decode_kernel",
        "attention_prefill_kernel",
    ]


def test_launches_follow_from_shapes_alone() -> None:
    """Meta tensors hold no lengths: nothing waits for the device, and a graph can be replayed."""

    def launches_on(device: str) -> list[tuple[str, tuple[int, ...], dict[str, Any]]]:
        q, pool, *metadata = call([1, 30], [200, 77], kv_dtype="int8")
        parts = [x.to(device) for x in (pool.k, pool.v, pool.k_scale, pool.v_scale)]
        with assume(for_arch("sm_90")), recording() as launches:
            attention(
                q.to(device),
                KVPool(pool.layout, *parts),
                *(x.to(device) for x in metadata),
                window=9,
                impl="triton",
            )
        return [(launch.name, launch.grid, launch.meta) for launch in launches]

    assert launches_on("meta") == launches_on(DEVICE)


@pytest.mark.parametrize("kv_dtype", ["bf16", "int8"])
def test_more_programs_change_no_bits(kv_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = call([1] * 5, [0, 1, 64, 333, 200], kv_dtype=kv_dtype)
    expected = attention(*args, impl="triton")

    many = Target("interpreter", "interpreter", 1000)
    monkeypatch.setattr(attention_kernel, "target_of", lambda device: many)
    assert torch.equal(attention(*args, impl="triton"), expected)


@pytest.mark.parametrize("kv_dtype", ["fp32", "int8"])
def test_a_row_of_many_splits_does_not_see_its_batch(kv_dtype: str) -> None:
    q, pool, starts, lengths, table = call(
        [1, 20, 1], [1200, 40, 90], kv_dtype=kv_dtype, heads=(4, 1, 128), dtype=torch.float32
    )
    expected = attention(
        q[:1], pool, starts[:2], lengths[:1], table[:1], max_queries=1, impl="triton"
    )
    for batch in (1, 2, 3):
        rows = int(starts[batch])
        several = (q[:rows], pool, starts[: batch + 1], lengths[:batch], table[:batch])
        assert torch.equal(attention(*several, impl="triton")[:1], expected)


def test_sequences_may_be_many() -> None:
    lengths = [(7 * i) % 70 for i in range(37)]
    args = call([1] * 37, lengths, heads=(3, 1, 16))
    alone = [
        attention(
            args[0][row : row + 1],
            args[1],
            int32([0, 1]),
            args[3][row : row + 1],
            args[4][row : row + 1],
            impl="triton",
        )
        for row in (0, 3, 36)
    ]
    whole = attention(*args, impl="triton")
    assert torch.equal(torch.cat(alone), whole[[0, 3, 36]])


@pytest.mark.parametrize("group", [5, 16, 20, 71])
def test_groups_that_fill_more_than_a_tile(group: int) -> None:
    args = call([1, 3, 9], [70, 5, 130], heads=(group, 1, 16), dtype=torch.float32, kv_dtype="fp32")
    expected = attention(*args, impl="reference")
    torch.testing.assert_close(attention(*args, impl="triton"), expected, rtol=2e-5, atol=2e-6)


def test_scales_far_apart_lose_nothing() -> None:
    """Products with int8 V are made in float16, relative to the largest scale of a tile."""
    q, pool, starts, lengths, table = call([1], [32], kv_dtype="int8", heads=(1, 1, 16))
    assert pool.k_scale is not None
    assert pool.v_scale is not None
    pool.k.zero_()  # equal weights
    pool.v.fill_(100)
    pool.k_scale.fill_(1.0)
    for large in (1e-30, 1.0, 1e30):
        pool.v_scale.fill_(large)
        pool.v_scale.view(-1)[::2] = large * 1e-5
        out = attention(q, pool, starts, lengths, table, impl="triton")
        expected = attention(q, pool, starts, lengths, table, impl="reference")
        torch.testing.assert_close(out, expected, rtol=1e-2, atol=0)
    pool.v_scale.zero_()
    assert not attention(q, pool, starts, lengths, table, impl="triton").any()


def test_queries_beyond_float16_saturate() -> None:
    q, pool, *metadata = call([1], [32], kv_dtype="fp16", heads=(2, 1, 16))
    assert attention(q * 1e30, pool, *metadata, impl="triton").isfinite().all()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("kv", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
def test_configurations_are_few_and_hold_the_default(arch: str, kv: str, dim: int) -> None:
    for tunable in (tunables.DECODE, tunables.PREFILL):
        key = tunables.key_of(kv, torch.bfloat16, dim, 4, None)
        space = tunable.space(key, for_arch(arch))
        assert tunable.default(key, for_arch(arch)) in space
        assert len(space) <= 48
        assert len({str(config.meta) for config in space}) == len(space)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs --device cuda")
def test_offsets_past_two_to_the_31() -> None:
    layout = KVLayout("int8", 16, 8, 128)
    blocks = 2**31 // (16 * 8 * 128) + 8
    pool = layout.allocate(blocks, DEVICE)
    last = blocks - 3
    near = layout.allocate(4, DEVICE)
    for far, small in ((pool.k, near.k), (pool.v, near.v)):
        small.random_(-127, 128)
        far[last : last + 2] = small[:2]
    for far, small in ((pool.k_scale, near.k_scale), (pool.v_scale, near.v_scale)):
        assert far is not None
        assert small is not None
        small.uniform_(0.01, 0.02)
        far[last : last + 2] = small[:2]
    q = torch.randn(31, 32, 128, dtype=torch.bfloat16, device=DEVICE)
    starts, lengths = int32([0, 1, 31]), int32([20, 30])
    tables = [int32([[b, b + 1]] * 2) for b in (last, 0)]
    far, small = (
        attention(q, p, starts, lengths, table, impl="triton")
        for p, table in zip((pool, near), tables, strict=True)
    )
    assert torch.equal(far, small)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs --device cuda")
@pytest.mark.parametrize("kv_dtype", ["bf16", "int8"])
def test_a_hundred_identical_reruns(kv_dtype: str) -> None:
    args = call([1, 1, 1, 300], [3000, 17, 16000, 900], kv_dtype=kv_dtype, heads=(32, 8, 128))
    expected = attention(*args, impl="triton")
    for _ in range(100):
        assert torch.equal(attention(*args, impl="triton"), expected)
