"""One decoder layer, built from the operators: read it top to bottom, it is the whole maths.

Shapes: T tokens, H hidden, Hq/Hkv query and kv heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.attention import attention
from kernels.decode_mlp import PackedMLP, decode_mlp
from kernels.layout import KVPool
from kernels.linear import PackedLinear, linear
from kernels.rms_norm import rms_norm
from kernels.rope_append import rope_append
from model.config import LlamaConfig
from model.paged_batch import PagedBatch


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one decoder layer, packed for the stage's implementation."""

    input_norm: torch.Tensor  # [H]
    qkv: PackedLinear  # [(Hq + 2 Hkv) D, H], rows of q, then k, then v
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    o: PackedLinear  # [H, Hq D]
    post_norm: torch.Tensor  # [H]
    mlp: PackedMLP

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weights take."""
        norms = (self.input_norm, self.q_norm, self.k_norm, self.post_norm)
        return (
            sum(norm.nbytes for norm in norms if norm is not None)
            + self.qkv.nbytes
            + self.o.nbytes
            + self.mlp.nbytes
        )


def decoder_layer(
    hidden: torch.Tensor,
    weights: LayerWeights,
    pool: KVPool,
    batch: PagedBatch,
    rope: tuple[torch.Tensor, torch.Tensor],
    config: LlamaConfig,
    window: int | None,
    impl: str,
) -> torch.Tensor:
    """The layer's residual stream, [T, H] float32 in and out; writes K and V into `pool`.

    Args:
        hidden: residual stream before the layer, [T, H] float32; not modified.
        rope: cos and sin of the T tokens, [T, D/2] float32 each.
        window: sliding window in positions, or None.
        impl: resolved implementation of every operator.
    """
    heads, kv_heads, dim = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    tokens = hidden.shape[0]
    eps = config.rms_norm_eps

    x = rms_norm(hidden, weights.input_norm, eps, out_dtype=weights.qkv.dtype, impl=impl)
    qkv = linear(x, weights.qkv).view(tokens, heads + 2 * kv_heads, dim)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
    q = rope_append(
        q,
        k,
        v,
        *rope,
        pool,
        batch.slot_mapping,
        q_norm=weights.q_norm,
        k_norm=weights.k_norm,
        eps=eps,
        interleaved=config.rope_interleaved,
        impl=impl,
    )
    attended = attention(
        q,
        pool,
        batch.query_start,
        batch.kv_len,
        batch.block_table,
        window=window,
        max_queries=batch.max_queries,
        impl=impl,
    )
    hidden = linear(attended.reshape(tokens, heads * dim), weights.o, residual=hidden)
    return decode_mlp(hidden, weights.post_norm, eps, weights.mlp, impl=impl)
