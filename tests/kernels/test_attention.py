"""Attention against dense torch attention, and what must not matter to it."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import KVLayout, KVPool, scratch
from kernels.attention import attention
from kernels.attention.cpu_plan import plan
from kernels.errors import InvalidInputError
from kernels.rope_append import rope_append
from tests.devices import DEVICE, IMPLS

pytestmark = pytest.mark.usefixtures("on_device")
TORCH = [impl for impl in IMPLS if impl != "triton"]


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def starts(counts: list[int]) -> Tensor:
    return int32([0, *accumulate(counts)])


def paged(k: Tensor, v: Tensor, block_size: int, dtype: str = "fp32") -> tuple[KVPool, Tensor]:
    """One sequence's k, v [L, Hkv, D] in shuffled blocks of a pool of NaN; its table [1, n]."""
    length, kv_heads, dim = k.shape
    blocks = -(-length // block_size)
    pool = KVLayout(dtype, block_size, kv_heads, dim).allocate(blocks + 3, DEVICE)
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    table = torch.randperm(blocks + 3)[:blocks]
    slots = (table.unsqueeze(1) * block_size + torch.arange(block_size)).flatten()[:length]
    pool.k.flatten(0, 1)[slots] = k.to(pool.k.dtype)
    pool.v.flatten(0, 1)[slots] = v.to(pool.v.dtype)
    return pool, table.int().unsqueeze(0)


def dense(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None) -> Tensor:
    """q [n, Hq, D], k, v [L, Hkv, D] -> [n, Hq, D] in float64, by torch's own attention."""
    n, length = q.shape[0], k.shape[0]
    distance = torch.arange(length - n, length).unsqueeze(1) - torch.arange(length)
    visible = (distance >= 0) & (distance < (window or length))
    heads = [x.double().transpose(0, 1) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads, attn_mask=visible, scale=scale, enable_gqa=True)
    return out.transpose(0, 1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("n", "length", "window", "scale"),
    [
        (1, 1, None, None),
        (1, 97, None, 0.3),
        (1, 97, 13, None),
        (54, 54, None, None),
        (54, 54, 3, None),
        (20, 199, None, None),
        (20, 199, 37, 1.0),
        (700, 800, None, None),  # more queries than share a mask
        (700, 800, 533, None),
    ],
)
def test_equals_dense_attention(
    impl: str, n: int, length: int, window: int | None, scale: float | None
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(n, 8, 16), torch.randn(length, 2, 16), torch.randn(length, 2, 16)
    pool, table = paged(k, v, 5)
    out = attention(
        q, pool, starts([n]), int32([length]), table, scale=scale, window=window, impl=impl
    )
    torch.testing.assert_close(out.double(), dense(q, k, v, window, scale), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_softcap_is_applied_to_scaled_scores(impl: str) -> None:
    torch.manual_seed(0)
    q, k, v = (30 * torch.randn(1, 1, 16), torch.randn(9, 1, 16), torch.randn(9, 1, 16))
    pool, table = paged(k, v, 4)
    scores = 2.0 * torch.tanh(torch.einsum("nhd,lhd->hnl", q, k) * 0.5 / 2.0)
    expected = torch.einsum("hnl,lhd->nhd", scores.softmax(-1), v)
    args = (q, pool, starts([1]), int32([9]), table)
    out = attention(*args, scale=0.5, softcap=2.0, impl=impl)
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out, attention(*args, scale=0.5, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_nothing_give_zeros(impl: str, dtype: torch.dtype) -> None:
    pool = KVLayout("bf16", 4, 1, 8).allocate(2, DEVICE)
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    pool.k[1, :2], pool.v[1, :2] = 1.0, 3.0
    table = int32([7, 1, 9]).unsqueeze(1)
    q = torch.ones(1 + 5 + 2, 2, 8, dtype=dtype)
    out = attention(q, pool, starts([1, 5, 2]), int32([0, 2, 0]), table, impl=impl)
    # The second row's first three queries sit before position 0.
    assert out[:4].eq(0).all()
    assert out[4:6].eq(3).all()
    assert out[6:].eq(0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_queries_and_no_sequences(impl: str) -> None:
    pool = KVLayout("fp32", 4, 2, 8).allocate(1, DEVICE)
    table = torch.zeros(2, 1, dtype=torch.int32)
    none = attention(torch.ones(0, 4, 8), pool, int32([0, 0, 0]), int32([3, 0]), table, impl=impl)
    assert none.shape == (0, 4, 8)
    none = attention(torch.ones(0, 4, 8), pool, int32([0]), int32([]), table[:0], impl=impl)
    assert none.shape == (0, 4, 8)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [1, 4])
def test_tokens_behind_the_window_are_not_read(impl: str, n: int) -> None:
    torch.manual_seed(0)
    k, v, q = torch.randn(40, 1, 8), torch.randn(40, 1, 8), torch.randn(n, 2, 8)
    pool, table = paged(k, v, 4)
    poisoned, poisoned_table = paged(k, v, 4)
    gone = 40 - n - 6 + 1  # with a window of 6, position 40 - n sees 6 tokens back
    blocks, offsets = poisoned_table[0, torch.arange(gone) // 4].long(), torch.arange(gone) % 4
    poisoned.k[blocks, offsets] = poisoned.v[blocks, offsets] = torch.nan
    poisoned_table[0, : gone // 4] = 2**31 - 1
    args = (starts([n]), int32([40]))
    out = attention(q, poisoned, *args, poisoned_table, window=6, impl=impl)
    assert torch.equal(out, attention(q, pool, *args, table, window=6, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_queries(impl: str) -> None:
    torch.manual_seed(0)
    pool, table = paged(torch.randn(9, 2, 8), torch.randn(9, 2, 8), 4)
    fused = torch.randn(3, 4 + 2 + 2, 8)
    args = (pool, starts([3]), int32([9]), table)
    strided = attention(fused[:, :4], *args, impl=impl)
    assert torch.equal(strided, attention(fused[:, :4].contiguous(), *args, impl=impl))


def test_the_cpu_plan_follows_its_metadata_in_place() -> None:
    """Callers may keep one metadata tensor and write to it; a plan is found by contents."""
    query_start, kv_len, table = starts([1, 1]), int32([3, 5]), int32([0, 1, 2, 3]).view(2, 2)

    def slots() -> list[list[int]]:
        found = plan(query_start, kv_len, table, 4, None)
        return [group.slots[:, 4].tolist() for group in found.groups]

    assert slots() == [[2, 12]]  # the first row is padded with its last token
    assert plan(query_start, kv_len, table, 4, None) is plan(query_start, kv_len, table, 4, None)
    kv_len.numpy()[0] = 5  # unseen by torch's version counter
    assert slots() == [[4, 12]]
    table.numpy()[0, 1] = 9
    assert slots() == [[36, 12]]
    assert len(plan(query_start, kv_len, table, 4, 2).groups[0].slots.unique()) == 4


def test_lengths_share_few_groups() -> None:
    lengths = list(range(1, 1025))
    table = torch.zeros(1024, 64, dtype=torch.int32)
    found = plan(starts([1] * 1024), int32(lengths), table, 16, None)
    assert len(found.groups) <= 20
    longest = max(group.slots.shape[1] for group in found.groups)
    assert longest == 1024
    padded = sum(group.slots.numel() for group in found.groups)
    assert padded <= 1.25 * sum(lengths)


class _LargestFloat(TorchDispatchMode):
    """Records the most elements that any floating-point result of a torch call has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("impl", TORCH)
def test_no_float_copy_of_an_int8_pool(impl: str) -> None:
    pool = KVLayout("int8", 16, 2, 64).allocate(500, DEVICE)
    table = torch.arange(4, dtype=torch.int32).view(2, 2)
    q = torch.randn(1 + 20, 4, 64)
    with _LargestFloat() as largest:
        attention(q, pool, starts([1, 20]), int32([32, 32]), table, impl=impl)
    # The scales' pool is seen, as a view; nothing as large as K's own.
    assert 0 < largest.elements <= pool.k.numel() // 64


@pytest.mark.parametrize("portion", [1, 700, 5000])
def test_portions_change_no_bits(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long rows are converted a few heads at a time, short ones a few rows at a time."""
    torch.manual_seed(0)
    pool = KVLayout("int8", 16, 6, 16).allocate(40)
    for codes, scale in ((pool.k, pool.k_scale), (pool.v, pool.v_scale)):
        codes.random_(-127, 128)
        assert scale is not None
        scale.uniform_(0.005, 0.02)
    table = torch.stack([torch.randperm(40)[:13] for _ in range(6)]).int()
    q = torch.randn(1 + 1 + 1 + 9 + 1 + 1, 12, 16)
    args = (q, pool, starts([1, 1, 1, 9, 1, 1]), int32([200, 17, 100, 60, 101, 0]), table)
    whole = attention(*args, impl="cpu")
    monkeypatch.setattr("kernels.attention.cpu._PORTION", portion)
    assert torch.equal(attention(*args, impl="cpu"), whole)


@pytest.mark.parametrize("impl", IMPLS)
def test_inference_mode_comes_and_goes(impl: str) -> None:
    """What one mode leaves behind (pools, scratch memory, plans) serves in the other."""
    scratch.clear()
    with torch.inference_mode():
        pool = KVLayout("int8", 4, 1, 8).allocate(3, DEVICE)
    x, table = torch.randn(9, 1, 8), torch.ones(9, 4)
    blocks = int32([0, 1, 2]).unsqueeze(0)

    def run() -> Tensor:
        q = rope_append(x, x, x, table, table, pool, torch.arange(9), impl=impl)
        out = attention(q, pool, starts([9]), int32([9]), blocks, impl=impl)
        last = attention(q[8:], pool, starts([1]), int32([9]), blocks, impl=impl)
        torch.testing.assert_close(out[8:], last)
        return out

    with torch.inference_mode():
        inside = run()
    assert torch.equal(run(), inside)


@pytest.mark.parametrize("impl", TORCH)  # a kernel would have to wait for the device to see it
def test_query_start_must_end_at_the_last_row(impl: str) -> None:
    pool, table = paged(torch.randn(9, 1, 8), torch.randn(9, 1, 8), 4)
    with pytest.raises(InvalidInputError, match=r"query_start\[-1\] is 2; expected 3, the rows"):
        attention(torch.randn(3, 1, 8), pool, starts([2]), int32([9]), table, impl=impl)
