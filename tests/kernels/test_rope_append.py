"""RoPE and the cache write: rotation, norms, what is written and what is left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import KVLayout, KVPool, rope_append
from tests.devices import DEVICE, IMPLS

pytestmark = pytest.mark.usefixtures("on_device")


def angles(tokens: int, half: int) -> Tensor:
    frequency = 10000.0 ** -(torch.arange(half) / half)
    return torch.arange(tokens).unsqueeze(1) * frequency


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("tokens", "impl"),
    # "cpu" rotates fewer than 300 at a time.
    [(1, impl) for impl in IMPLS] + [(7, impl) for impl in IMPLS] + [(300, IMPLS[0])],
)
def test_rotation_is_multiplication_of_complex_numbers(
    impl: str, interleaved: bool, tokens: int
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(tokens, 8, 16).split([4, 2, 2], dim=1)
    angle = angles(tokens, 8)
    pool = KVLayout("fp32", 5, 2, 16).allocate(-(-tokens // 5), DEVICE)
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
    pool, expected = (KVLayout("fp32", 8, 2, 16).allocate(1, DEVICE) for _ in range(2))
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
    pool = KVLayout(dtype, 4, 2, 8).allocate(3, DEVICE)
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
    untouched = [slot for slot in range(12) if slot not in (11, 0, 6)]
    for tensor in tensors:
        assert tensor.flatten(0, 1)[untouched].eq(77).all()
        assert tensor.flatten(0, 1)[slots].ne(77).flatten(1).any(1).all()
    if dtype != "int8":
        assert torch.equal(pool.v.flatten(0, 1)[slots], v.to(pool.v.dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens(impl: str) -> None:
    pool = KVLayout("int8", 4, 2, 8).allocate(1, DEVICE)
    q, kv, table = torch.ones(0, 4, 8), torch.ones(0, 2, 8), torch.ones(0, 4)
    slots = torch.zeros(0, dtype=torch.int64)
    out = rope_append.rope_append(q, kv, kv, table, table, pool, slots, impl=impl)
    assert out.shape == (0, 4, 8)
    assert not pool.k.any()


# Largest magnitudes of a row, and what else is in it.
SIZES = (0.0, 1e-45, 3e-43, 1e-38, 1e-4, 1.0, 30.0, 1e30)
HEAD_DIMS = (8, 16, 24, 64, 80, 96, 128, 256)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, the sign of zeros and NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def tensors_of(pool: KVPool) -> list[Tensor]:
    return [t for t in (pool.k, pool.v, pool.k_scale, pool.v_scale) if t is not None]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_triton_equals_the_reference_bit_for_bit(data: st.DataObject) -> None:
    """Without norms nothing is summed, so that codes, scales and q must be the same."""
    draw = data.draw
    tokens, kv_heads = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    q_heads, dim = kv_heads * draw(st.sampled_from((1, 3, 4))), draw(st.sampled_from(HEAD_DIMS))
    block_size = draw(st.sampled_from((1, 5, 16)))
    kv_dtype = draw(st.sampled_from(("int8", "int8", "fp32", "fp16", "bf16")))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    interleaved = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**16)))
    with torch.device(DEVICE):
        # More heads than are used, so that they are strided views.
        fused = torch.randn(tokens, q_heads + 2 * kv_heads + 1, dim)
        fused *= torch.tensor(SIZES)[torch.randint(len(SIZES), fused.shape[:2])].unsqueeze(-1)
        if draw(st.booleans()):
            fused[:, ::2] = fused[:, ::2, :1]  # constant rows
        if dtype == torch.float16:
            fused = fused.clamp(-60000, 60000)
        if dtype == torch.bfloat16:  # whose subnormals Triton's interpreter widens wrongly
            fused[fused.abs() < 2.0**-126] = 0
        q, k, v, _ = fused.to(dtype).split([q_heads, kv_heads, kv_heads, 1], dim=1)
        angle = torch.randn(tokens, dim // 2) * 10
        layout = KVLayout(kv_dtype, block_size, kv_heads, dim)
        pools = [layout.allocate(2 + tokens, DEVICE) for _ in range(2)]
        slots = torch.randperm(pools[0].num_blocks * block_size)[:tokens]
    for pool in pools:
        for tensor in tensors_of(pool):
            tensor.fill_(77)
    out = [
        rope_append.rope_append(
            q, k, v, angle.cos(), angle.sin(), pool, slots, interleaved=interleaved, impl=impl
        )
        for pool, impl in zip(pools, ("triton", "reference"), strict=True)
    ]
    assert equal_bits(*out)
    for ours, theirs in zip(*map(tensors_of, pools), strict=True):
        assert equal_bits(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dim", [16, 80])
def test_int8_of_heads_that_are_not_finite(impl: str, dim: int) -> None:
    k, v = torch.randn(2, 6, 2, dim).unbind()
    bad = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, torch.nan, -3.0])
    k[range(6), 0, range(6)] = bad
    v[range(6), 1, range(dim - 6, dim)] = bad
    v[4, 1, 3] = torch.inf  # beside a NaN
    pool = KVLayout("int8", 4, 2, dim).allocate(2, DEVICE)
    table = torch.ones(6, dim // 2), torch.zeros(6, dim // 2)
    rope_append.rope_append(torch.randn(6, 2, dim), k, v, *table, pool, torch.arange(6), impl=impl)
    for x, codes, scales in ((k, pool.k, pool.k_scale), (v, pool.v, pool.v_scale)):
        # 0 * inf: the pair of an infinity is NaN once it is rotated, and so is its scale.
        a, b = x.chunk(2, dim=-1)
        held = torch.cat([a - 0 * b, b + 0 * a], dim=-1) if x is k else x
        assert scales is not None
        scale = scales.flatten(0, 1)[:6]
        expected = held.abs().amax(dim=-1) / torch.full((), 127.0)
        torch.testing.assert_close(scale, expected, equal_nan=True)
        assert scale[:, 0 if x is k else 1].isfinite().tolist() == [False] * 5 + [True]
        assert scale[:, 1 if x is k else 0].isfinite().all()
        divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
        rounded = (held / divisor).round().clamp(-127, 127).nan_to_num(0.0)
        assert torch.equal(codes.flatten(0, 1)[:6], rounded.to(torch.int8))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kv_dtype", ["fp16", "int8"])
def test_tokens_with_a_negative_slot_are_written_nowhere(kv_dtype: str) -> None:
    q, k, v = torch.randn(5, 8 + 2 + 2, 16).split([8, 2, 2], dim=1)
    angle, layout = angles(5, 8), KVLayout(kv_dtype, 4, 2, 16)
    expected, whole = layout.allocate(2, DEVICE), layout.allocate(5, DEVICE)
    # What lies before slot 0 is there to be seen.
    padded = KVPool(layout, *(tensor[3:] for tensor in tensors_of(whole)))
    table = angle.cos(), angle.sin()
    slots = torch.tensor([3, -1, 6, -1, -9])
    out = rope_append.rope_append(q, k, v, *table, padded, slots, impl="triton")
    rows = torch.tensor([0, 2])
    few = [x[rows] for x in (q, k, v, *table)]
    assert torch.equal(
        out[rows], rope_append.rope_append(*few, expected, slots[rows], impl="triton")
    )
    assert not out.isnan().any()
    for ours, theirs in zip(tensors_of(padded), tensors_of(expected), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(tensor[:3].any() for tensor in tensors_of(whole))


@pytest.mark.parametrize("impl", IMPLS)
def test_strides_do_not_matter(impl: str) -> None:
    torch.manual_seed(0)
    wide = torch.randn(3, 6, 16, 2)  # the last dimension has stride 2
    table = torch.randn(3, 8, 2)
    slots = torch.tensor([[5, 9], [1, 9], [0, 9]])[:, 0]
    norm = torch.rand(16, 2)[:, 0]
    results = []
    for copy in (lambda x: x, lambda x: x.contiguous()):
        pool = KVLayout("int8", 4, 1, 16).allocate(2, DEVICE)
        q, k, v = (copy(x) for x in wide[..., 0].split([4, 1, 1], dim=1))
        cos, sin, weight = copy(table[..., 0]), copy(table[..., 1]), copy(norm)
        out = rope_append.rope_append(
            q, k, v, cos, sin, pool, copy(slots), q_norm=weight, k_norm=weight, impl=impl
        )
        results.append([out, *tensors_of(pool)])
    assert all(equal_bits(*pair) for pair in zip(*results, strict=True))


@pytest.mark.skipif(DEVICE != "cuda", reason="5 GB of pools; needs --device cuda")
def test_offsets_past_two_to_the_31() -> None:
    layout = KVLayout("int8", 16, 8, 128)
    pool = layout.allocate(2**31 // (16 * 8 * 128) + 2, DEVICE)
    last = pool.num_blocks * 16 - 1
    slots = torch.tensor([last, 0, last - 20])
    q, k, v = torch.randn(3, 32 + 8 + 8, 128, dtype=torch.bfloat16).split([32, 8, 8], dim=1)
    angle = angles(3, 64)
    small = layout.allocate(2, DEVICE)
    table = angle.cos(), angle.sin()
    rope_append.rope_append(q, k, v, *table, pool, slots, impl="triton")
    where = torch.tensor([31, 0, 11])
    rope_append.rope_append(q, k, v, *table, small, where, impl="triton")
    for ours, theirs in zip(tensors_of(pool), tensors_of(small), strict=True):
        assert torch.equal(ours.flatten(0, 1)[slots], theirs.flatten(0, 1)[where])
        assert ours.count_nonzero() == theirs.count_nonzero()
