"""Sizes of well-known models, for which kernels are compiled ahead of time and timed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What decides the shapes and options of a model's operator calls; names as in its config."""

    name: str
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused q, k, v projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


LLAMA_1B = ModelShape("llama-3.2-1b", 2048, 8192, 32, 8, 64, 128256)
LLAMA_8B = ModelShape("llama-3.1-8b", 4096, 14336, 32, 8, 128, 128256)
QWEN2_7B = ModelShape("qwen2.5-7b", 3584, 18944, 28, 4, 128, 152064, qkv_bias=True)
QWEN3_8B = ModelShape("qwen3-8b", 4096, 12288, 32, 8, 128, 151936, qk_norm=True)
MISTRAL_7B = ModelShape("mistral-7b", 4096, 14336, 32, 8, 128, 32000, window=4096)
# Head dims that are no powers of two, as Phi's models have them.
DIM_96 = ModelShape("phi-dim96", 3072, 8192, 32, 32, 96, 32064)
DIM_80 = ModelShape("phi-dim80", 2560, 10240, 32, 32, 80, 51200)

MODELS = (LLAMA_1B, LLAMA_8B, QWEN2_7B, QWEN3_8B, MISTRAL_7B, DIM_96, DIM_80)
