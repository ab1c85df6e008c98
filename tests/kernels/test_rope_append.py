"""RoPE and the cache write: rotation, norms, what is written and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import KVLayout, rope_append

IMPLS = ["cpu", "reference"]


def angles(tokens: int, half: int) -> Tensor:
    frequency = 10000.0 ** -(torch.arange(half) / half)
    return torch.arange(tokens).unsqueeze(1) * frequency


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 300])  # 300: more than are rotated at a time
def test_rotation_is_multiplication_of_complex_numbers(
    impl: str, interleaved: bool, tokens: int
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(tokens, 8, 16).split([4, 2, 2], dim=1)
    angle = angles(tokens, 8)
    pool = KVLayout("fp32", 5, 2, 16).allocate(-(-tokens // 5))
    slots = torch.randperm(pool.num_blocks * 5)[:tokens]
    args = (angle.cos(), angle.sin(), pool, slots)
    out = rope_append.rope_append(q, k, v, *args, interleaved=interleaved, impl=impl)

    def rotated(x: Tensor) -> Tensor:
        if interleaved:
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        else:
            pairs = torch.complex(*x.chunk(2, dim=-1))
        turned = pairs * torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
        parts = [turned.real, turned.imag]
        return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)

    torch.testing.assert_close(out, rotated(q))
    torch.testing.assert_close(pool.k.flatten(0, 1)[slots], rotated(k))
    assert torch.equal(pool.v.flatten(0, 1)[slots], v)


@pytest.mark.parametrize("impl", IMPLS)
def test_norms_come_before_the_rotation(impl: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 4, 16), torch.randn(5, 2, 16), torch.randn(5, 2, 16)
    q_norm, k_norm = torch.rand(16), torch.rand(16)
    angle = angles(5, 8)

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (16,), weight, eps=1e-3)

    slots = torch.arange(5)
    pool, expected = (KVLayout("fp32", 8, 2, 16).allocate(1) for _ in range(2))
    out = rope_append.rope_append(
        q,
        k,
        v,
        angle.cos(),
        angle.sin(),
        pool,
        slots,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-3,
        impl=impl,
    )
    table = (angle.cos(), angle.sin(), expected, slots)
    expected_q = rope_append.rope_append(
        normed(q, q_norm), normed(k, k_norm), v, *table, impl="reference"
    )
    torch.testing.assert_close(out, expected_q)
    torch.testing.assert_close(pool.k, expected.k)
    assert torch.equal(pool.v, expected.v)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_writes_its_slots_and_nothing_else(impl: str, dtype: str) -> None:
    pool = KVLayout(dtype, 4, 2, 8).allocate(3)
    tensors = [t for t in (pool.k, pool.v, pool.k_scale, pool.v_scale) if t is not None]
    for tensor in tensors:
        tensor.fill_(77)
    slots = torch.tensor([11, 0, 6])
    q, k, v = torch.randn(3, 2 + 2 + 2, 8, dtype=torch.bfloat16).split(2, dim=1)
    before = [x.clone() for x in (q, k, v)]
    out = rope_append.rope_append(
        q, k, v, torch.ones(3, 4), torch.zeros(3, 4), pool, slots, impl=impl
    )
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, q)  # no rotation, so nothing changes
    assert out.data_ptr() != q.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))
    untouched = [slot for slot in range(12) if slot not in slots]
    for tensor in tensors:
        assert tensor.flatten(0, 1)[untouched].eq(77).all()
        assert tensor.flatten(0, 1)[slots].ne(77).flatten(1).any(1).all()
    if dtype != "int8":
        assert torch.equal(pool.v.flatten(0, 1)[slots], v.to(pool.v.dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens(impl: str) -> None:
    pool = KVLayout("int8", 4, 2, 8).allocate(1)
    q, kv, table = torch.ones(0, 4, 8), torch.ones(0, 2, 8), torch.ones(0, 4)
    slots = torch.zeros(0, dtype=torch.int64)
    out = rope_append.rope_append(q, kv, kv, table, table, pool, slots, impl=impl)
    assert out.shape == (0, 4, 8)
    assert not pool.k.any()
