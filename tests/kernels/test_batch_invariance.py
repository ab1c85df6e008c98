"""A row's bits do not depend on what else is in the batch, nor on when it is computed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from kernels import KVLayout, KVPool, decode_mlp, linear, logits, rms_norm, rope_append
from kernels.attention import attention
from kernels.dispatch import implementations
from kernels.linear import onednn
from kernels.override import OPERATORS
from tests.devices import DEVICE, IMPLS

BATCHES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100, 128, 129, 200, 257, 300)
SHAPES = [(64, 64), (8, 3), (1, 1), (127, 129), (300, 250), (2048, 333), (96, 1000), (1024, 2048)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(dtype: torch.dtype, n: int, k: int, bias: bool) -> None:
    if not onednn.available(dtype):
        pytest.skip("torch's plain product promises nothing about batches")
    torch.manual_seed(n)
    b = torch.randn(n).to(dtype) if bias else None
    packed = linear.pack(torch.randn(n, k).to(dtype), b, impl="cpu")
    x = torch.randn(BATCHES[-1], k).to(dtype)
    whole = linear.linear(x, packed)
    for batch in BATCHES:
        assert torch.equal(linear.linear(x[:batch], packed), whole[:batch]), batch
    for row in (1, 77, 299):
        assert torch.equal(linear.linear(x[row : row + 1], packed), whole[row : row + 1])


@pytest.mark.parametrize("width", [8, 97, 200, 2048, 5120])
def test_rms_norm(width: int) -> None:
    x, weight = torch.randn(300, width), torch.randn(width)
    whole = rms_norm.rms_norm(x, weight, 1e-5, impl="cpu")
    for batch in BATCHES:
        assert torch.equal(rms_norm.rms_norm(x[:batch], weight, 1e-5, impl="cpu"), whole[:batch])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_and_logits(dtype: torch.dtype) -> None:
    if not onednn.available(dtype):
        pytest.skip("torch's plain product promises nothing about batches")
    x, norm = torch.randn(65, 96), torch.randn(96)
    mlp = decode_mlp.pack(
        torch.randn(2 * 200, 96).to(dtype) / 10, torch.randn(96, 200).to(dtype) / 10, impl="cpu"
    )
    head = linear.pack(torch.randn(515, 96).to(dtype), impl="cpu")
    whole = decode_mlp.decode_mlp(x, norm, 1e-5, mlp, impl="cpu")
    scores = logits.logits(x, norm, 1e-5, head, impl="cpu")
    for rows in (slice(0, 1), slice(7, 8), slice(3, 20), slice(64, 65)):
        assert torch.equal(decode_mlp.decode_mlp(x[rows], norm, 1e-5, mlp, impl="cpu"), whole[rows])
        assert torch.equal(logits.logits(x[rows], norm, 1e-5, head, impl="cpu"), scores[rows])


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (13, None), (None, 20.0)])
def test_attention(kv_dtype: str, window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    counts = [1, 1, 5, 1, 1, 33, 1, 1, 1]
    lengths = [1, 97, 97, 1999, 100, 33, 54, 54, 700]
    pool = KVLayout(kv_dtype, 16, 2, 64).allocate(200)
    slots = torch.arange(3200)
    k, v = torch.randn(2, 3200, 2, 64).unbind()
    table = torch.ones(3200, 32), torch.zeros(3200, 32)
    rope_append.rope_append(torch.randn(3200, 2, 64), k, v, *table, pool, slots, impl="cpu")
    blocks = torch.stack([torch.randperm(200)[:126] for _ in counts]).int()
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    kv_len = torch.tensor(lengths).int()
    q = torch.randn(int(starts[-1]), 8, 64, dtype=torch.bfloat16)
    options = {"window": window, "softcap": softcap, "impl": "cpu"}
    whole = attention(q, pool, starts, kv_len, blocks, **options)
    for row, count in enumerate(counts):
        rows = slice(int(starts[row]), int(starts[row + 1]))
        alone = attention(
            q[rows],
            pool,
            torch.tensor([0, count]).int(),
            kv_len[row : row + 1],
            blocks[row : row + 1],
            **options,
        )
        assert torch.equal(alone, whole[rows]), row


@pytest.mark.parametrize("kv_dtype", ["bf16", "int8"])
def test_rope_append(kv_dtype: str) -> None:
    q, k, v = torch.randn(150, 8, 64, dtype=torch.bfloat16).split([4, 2, 2], dim=1)
    angle, norm = torch.randn(150, 32), torch.randn(64)
    pools = [KVLayout(kv_dtype, 16, 2, 64).allocate(10) for _ in range(2)]
    slots = torch.randperm(160)[:150]

    def run(pool: int, rows: slice) -> torch.Tensor:
        heads = (q[rows], k[rows], v[rows], angle[rows].cos(), angle[rows].sin())
        return rope_append.rope_append(
            *heads, pools[pool], slots[rows], q_norm=norm, k_norm=norm, impl="cpu"
        )

    whole = run(0, slice(None))
    parts = [run(1, slice(row, row + 1)) for row in range(150)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(pools[0].k, pools[1].k)
    assert torch.equal(pools[0].v, pools[1].v)


# An operator over some of 17 rows: the tensors that it returned or wrote.
Rows = Callable[[slice], list[Tensor]]
ROWS = 17
FEW = (slice(0, 1), slice(16, 17), slice(6, 9), slice(0, 16))


def randn(*shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * std).to(dtype)


def rms_norm_rows(impl: str, dtype: torch.dtype) -> Rows:
    x, residual, weight = randn(ROWS, 200), randn(ROWS, 200), randn(200, dtype=dtype)
    return lambda rows: [
        rms_norm.rms_norm(x[rows], weight, 1e-5, out_dtype=dtype, impl=impl),
        *rms_norm.rms_norm(x[rows], weight, 1e-5, residual=residual[rows], impl=impl),
    ]


def linear_rows(impl: str, dtype: torch.dtype) -> Rows:
    x, residual = randn(ROWS, 1100, dtype=dtype), randn(ROWS, 70)
    packed = linear.pack(randn(70, 1100, dtype=dtype), randn(70, dtype=dtype), impl=impl)
    return lambda rows: [
        linear.linear(x[rows], packed),
        linear.linear(x[rows], packed, residual=residual[rows]),
    ]


def decode_mlp_rows(impl: str, dtype: torch.dtype) -> Rows:
    x, norm = randn(ROWS, 96), randn(96, dtype=dtype)
    gate_up, down = randn(2 * 200, 96, dtype=dtype, std=0.1), randn(96, 200, dtype=dtype, std=0.1)
    mlp = decode_mlp.pack(gate_up, down, impl=impl)
    return lambda rows: [decode_mlp.decode_mlp(x[rows], norm, 1e-5, mlp, impl=impl)]


def logits_rows(impl: str, dtype: torch.dtype) -> Rows:
    x, norm, head = randn(ROWS, 96), randn(96, dtype=dtype), randn(515, 96, dtype=dtype)
    packed = linear.pack(head, impl=impl)
    return lambda rows: [logits.logits(x[rows], norm, 1e-5, packed, impl=impl)]


def greedy_rows(impl: str, dtype: torch.dtype) -> Rows:
    x, norm, head = randn(ROWS, 96), randn(96, dtype=dtype), randn(515, 96, dtype=dtype)
    packed = linear.pack(head.repeat(2, 1), impl=impl)  # every maximum is there twice
    return lambda rows: [logits.greedy(x[rows], norm, 1e-5, packed, impl=impl)]


def append(pool: KVPool, k: Tensor, v: Tensor, slots: Tensor, impl: str) -> Tensor:
    """Rotate and store k, v [T, Hkv, D]; k twice as the queries that come back."""
    angle = slots.unsqueeze(1) / (1.0 + torch.arange(k.shape[2] // 2, device=DEVICE))
    q, norm = k.repeat(1, 2, 1), torch.linspace(0.5, 2, k.shape[2], device=DEVICE)
    table = angle.cos(), angle.sin()
    return rope_append.rope_append(
        q, k, v, *table, pool, slots, q_norm=norm, k_norm=norm, impl=impl
    )


def rope_append_rows(impl: str, dtype: torch.dtype) -> Rows:
    k, v = randn(ROWS, 2, 80, dtype=dtype), randn(ROWS, 2, 80, dtype=dtype)
    slots = torch.randperm(25, device=DEVICE)[:ROWS]
    kv_dtype = "int8" if dtype == torch.float32 else "bf16"

    def run(rows: slice) -> list[Tensor]:
        pool = KVLayout(kv_dtype, 5, 2, 80).allocate(5, DEVICE)
        q = append(pool, k[rows], v[rows], slots[rows], impl)
        tensors = (pool.k, pool.v, pool.k_scale, pool.v_scale)
        return [q, *(t.flatten(0, 1)[slots[rows]] for t in tensors if t is not None)]

    return run


def attention_rows(impl: str, dtype: torch.dtype) -> Rows:
    counts = [1, 1, 5, 1, 1, 33, 1, 1, 0, 1, 1, 2, 1, 1, 1, 1, 1]
    lengths = [1, 97, 97, 300, 100, 33, 54, 54, 7, 0, 70, 130, 16, 17, 64, 65, 257]
    pool = KVLayout("int8" if dtype == torch.float32 else "bf16", 16, 2, 64).allocate(40, DEVICE)
    slots = torch.arange(640, device=DEVICE)
    k, v = randn(640, 2, 64), randn(640, 2, 64)
    append(pool, k, v, slots, IMPLS[0])
    tables = torch.stack([torch.randperm(40)[:20] for _ in counts]).int().to(DEVICE)
    starts = [0, *accumulate(counts)]
    q = randn(starts[-1], 8, 64, dtype=dtype)

    def run(rows: slice) -> list[Tensor]:
        first, last = starts[rows.start or 0], starts[ROWS if rows.stop is None else rows.stop]
        here = torch.tensor([0, *accumulate(counts[rows])], dtype=torch.int32, device=DEVICE)
        kv_len = torch.tensor(lengths[rows], dtype=torch.int32, device=DEVICE)
        args = q[first:last], pool, here, kv_len, tables[rows]
        out = [
            attention(*args, max_queries=max(counts[rows]), impl=impl),
            attention(*args, window=37, softcap=20.0, impl=impl),
        ]
        return [part for whole in out for part in whole.split(counts[rows])]

    return run


RUNNERS: dict[str, Callable[[str, torch.dtype], Rows]] = {
    "rms_norm": rms_norm_rows,
    "rope_append": rope_append_rows,
    "attention": attention_rows,
    "decode_mlp": decode_mlp_rows,
    "linear": linear_rows,
    "logits": logits_rows,
    "greedy": greedy_rows,
}
PROMISED = [
    pytest.param(op, impl, dtype, id=f"{op}-{impl}-{str(dtype)[6:]}")
    for op in OPERATORS
    for impl in implementations(op)
    if impl in IMPLS and impl != "reference"
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("op", "impl", "dtype"), PROMISED)
def test_a_row_alone_among_three_and_among_seventeen(
    op: str, impl: str, dtype: torch.dtype
) -> None:
    if impl == "cpu" and not onednn.available(dtype):
        pytest.skip("torch's plain product promises nothing about batches")
    torch.manual_seed(0)
    run = RUNNERS[op](impl, dtype)
    whole = run(slice(None))
    for rows in FEW:
        few = run(rows)
        if op == "attention":  # ragged: a part a row and option
            expected = [
                part for i in range(0, len(whole), ROWS) for part in whole[i : i + ROWS][rows]
            ]
        else:
            expected = [tensor[rows] for tensor in whole]
        assert len(few) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(few, expected, strict=True)), rows


@pytest.mark.parametrize(("op", "impl", "dtype"), PROMISED)
def test_reruns_are_identical(op: str, impl: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    run = RUNNERS[op](impl, dtype)
    first = run(slice(None))
    for _ in range(100 if DEVICE == "cuda" else 1):
        assert all(torch.equal(*pair) for pair in zip(run(slice(None)), first, strict=True))
