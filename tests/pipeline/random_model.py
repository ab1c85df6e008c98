"""Random models for hypothesis: configurations, weights that need no file, and their splits."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from model.config import LlamaConfig
from model.parity_weights import ParityWeights
from model.stage import LlamaStage
from model.weights import LinearWeights
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.loading import stage_specs
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from tests.devices import DEVICE


class RandomWeights(ParityWeights):
    """Normal weights by name and seed, in any dtype, of a size that keeps logits near 1."""

    def __init__(self, config: LlamaConfig, seed: int, dtype: torch.dtype) -> None:
        super().__init__(config)
        self.dtype = dtype
        self._seed = seed

    def tensor(self, name: str) -> torch.Tensor:
        shape = super().tensor(name).shape
        return self._normal(name, shape, 1.0) if len(shape) == 2 else self._normal(name, shape) + 1

    def linear(self, name: str) -> LinearWeights:
        weight, bias = super().linear(name)
        size = weight.shape[1] ** -0.5
        return LinearWeights(
            self._normal(name, weight.shape, size),
            None if bias is None else self._normal(f"{name}.bias", bias.shape),
        )

    def nbytes(self, name: str) -> int:
        return super().nbytes(name) * self.dtype.itemsize // 4

    def _normal(self, name: str, shape: torch.Size, size: float = 0.1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ self._seed)
        return (torch.randn(shape, generator=generator) * size).to(self.dtype)


@dataclass(frozen=True)
class RandomModel:
    """Everything that decides what a pipeline computes, but for how it is split."""

    config: LlamaConfig
    seed: int
    dtype: str
    kv_dtype: str
    block_size: int
    impl: str

    def pipeline(
        self,
        splits: list[int],
        mode: LlamaPipelineMode | str = "batch",
        kv_tokens: int | None = None,
    ) -> LlamaPipeline:
        """The model in stages of so many layers."""
        placement = Placement.from_splits(self.config.num_hidden_layers, splits, mode=mode)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]
        source = RandomWeights(self.config, self.seed, dtype)
        stages = [
            LlamaStage.load(
                source,
                spec,
                impl=self.impl,
                device=DEVICE if self.impl == "triton" else "cpu",
                kv_dtype=self.kv_dtype,
                block_size=self.block_size,
                kv_tokens=kv_tokens,
            )
            for spec in stage_specs(placement)
        ]
        return LlamaPipeline(stages, placement, threads=1)


@st.composite
def models(draw: st.DrawFn, impls: Sequence[str] = ("cpu", "reference")) -> RandomModel:
    """Models of two to four layers; of two where Triton's interpreter runs them."""
    impl = draw(st.sampled_from(impls))
    interpreted = impl == "triton" and DEVICE == "cpu"
    kv_heads = draw(st.integers(1, 3))
    qk_norm = draw(st.booleans())
    config = LlamaConfig(
        model_type="qwen3" if qk_norm else "llama",
        qk_norm=qk_norm,
        hidden_size=draw(st.integers(3, 40)),
        intermediate_size=draw(st.integers(1, 60)),
        num_hidden_layers=2 if interpreted else draw(st.integers(2, 4)),
        num_attention_heads=kv_heads * draw(st.integers(1, 4)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(4, 64)),
        vocab_size=draw(st.integers(2, 60)),
        max_position_embeddings=48,
        attention_bias=draw(st.booleans()),
        sliding_window=draw(st.none() | st.integers(1, 12)),
        rope_interleaved=draw(st.booleans()),
    )
    return RandomModel(
        config,
        seed=draw(st.integers(0, 2**31)),
        # All-float32 twice as often as another pair: only there is an uncut batch held to 1e-5.
        dtype=draw(st.sampled_from(["fp32", "fp32", "bf16"])),
        kv_dtype=draw(st.sampled_from(["fp32", "fp32", "fp16", "bf16", "int8"])),
        block_size=draw(st.integers(1, 20)),
        impl=impl,
    )


def splits_of(num_layers: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut two or more layers into two or more consecutive stages."""
    cuts = st.sets(st.integers(1, num_layers - 1), min_size=1).map(sorted)
    return cuts.map(
        lambda inner: [
            stop - start for start, stop in zip([0, *inner], [*inner, num_layers], strict=True)
        ]
    )
