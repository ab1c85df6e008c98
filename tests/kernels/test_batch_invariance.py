"""On the CPU a row's bits do not depend on what else is in the batch."""

from __future__ import annotations

import pytest
import torch

from kernels import KVLayout, decode_mlp, linear, logits, rms_norm, rope_append
from kernels.attention import attention
from kernels.linear import onednn

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
