"""Reading a stage's weights: its own tensors only, largest first, each packed once it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels import decode_mlp, linear
from kernels.errors import CheckpointError, InvalidInputError
from kernels.layout import KV_DTYPES
from kernels.linear import PackedLinear
from model.layers import LayerWeights
from model.weight_names import EMBEDDING
from model.weights import WeightSource

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Embedding:
    """Token embedding, [V, H]: a table of its own, or the rows of a tied head."""

    table: torch.Tensor | PackedLinear

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Residual stream of tokens `ids` int64 [T]: [T, H] float32."""
        if isinstance(self.table, torch.Tensor):
            return self.table.index_select(0, ids).float()
        return self.table.rows(ids).float()


@dataclass(frozen=True)
class StageWeights:
    """Packed weights of a stage; what it does not hold is None."""

    layers: tuple[LayerWeights, ...]
    embed: Embedding | None
    final_norm: torch.Tensor | None  # [H]
    head: PackedLinear | None  # [V, H]

    @property
    def nbytes(self) -> int:
        """Bytes held; a table shared by both ends counts once."""
        total = sum(layer.nbytes for layer in self.layers)
        if self.embed is not None and self.embed.table is not self.head:
            total += self.embed.table.nbytes
        if self.final_norm is not None:
            total += self.final_norm.nbytes
        if self.head is not None:
            total += self.head.nbytes
        return total


def resolve_dtype(dtype: str, source: torch.dtype, impl: str) -> torch.dtype:
    """The dtype of a stage's weights.

    "auto" is the checkpoint's dtype, but float16 is widened to float32 for the `cpu`
    implementation: CPUs have no fast float16 product, and the widening is exact.
    """
    if dtype == "auto":
        return torch.float32 if impl == "cpu" and source == torch.float16 else source
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype is {dtype!r}, expected auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def resolve_kv_dtype(kv_dtype: str, source: torch.dtype) -> str:
    """The layout's dtype name; "auto" is the checkpoint's dtype."""
    if kv_dtype == "auto":
        return next(name for name, dtype in DTYPES.items() if dtype == source)
    if kv_dtype not in KV_DTYPES:
        raise InvalidInputError(f"kv_dtype is {kv_dtype!r}, expected auto, {', '.join(KV_DTYPES)}")
    return kv_dtype


def load_stage_weights(
    source: WeightSource,
    layers: range,
    *,
    embed: bool,
    head: bool,
    dtype: torch.dtype,
    device: torch.device,
    impl: str,
    progress: Callable[[str, int], None] | None = None,
) -> StageWeights:
    """Read and pack what a stage needs, and nothing else.

    The ends come first: they are the largest single tensors, and while one is packed both its
    forms exist, which costs least while nothing else is there.
    """

    def report(name: str) -> None:
        if progress is not None:
            progress(name, source.nbytes(name))

    def cast(name: str, value: torch.Tensor) -> torch.Tensor:
        result = value.to(device, dtype)
        if dtype == torch.float16 and value.dtype != dtype and not bool(result.isfinite().all()):
            raise CheckpointError(f"{name} has values that float16 cannot hold; use bf16 or fp32")
        return result

    def tensor(name: str) -> torch.Tensor:
        value = cast(name, source.tensor(name))
        report(name)
        return value

    def packed(name: str, keep_rows: bool = False) -> PackedLinear:
        weight, bias = source.linear(name)
        bias = None if bias is None else cast(name, bias)
        result = linear.pack(cast(name, weight), bias, impl=impl, keep_rows=keep_rows)
        report(name)
        return result

    def matrix(name: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            weight = cast(name, source.linear(name).weight)  # MLPs have no bias
            report(name)
            return weight

        return read

    def layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}"
        qk_norm = source.config.qk_norm
        return LayerWeights(
            input_norm=tensor(f"{prefix}.input_layernorm.weight"),
            qkv=packed(f"{prefix}.self_attn.qkv_proj"),
            q_norm=tensor(f"{prefix}.self_attn.q_norm.weight") if qk_norm else None,
            k_norm=tensor(f"{prefix}.self_attn.k_norm.weight") if qk_norm else None,
            o=packed(f"{prefix}.self_attn.o_proj"),
            post_norm=tensor(f"{prefix}.post_attention_layernorm.weight"),
            mlp=decode_mlp.pack(
                matrix(f"{prefix}.mlp.gate_up_proj"),
                matrix(f"{prefix}.mlp.down_proj"),
                impl=impl,
            ),
        )

    tied = not source.has("lm_head.weight")
    lm_head = packed("lm_head", keep_rows=embed and tied) if head else None
    embedding = None
    if embed:
        shared = lm_head if tied else None
        embedding = Embedding(shared if shared is not None else tensor(EMBEDDING))
    return StageWeights(
        layers=tuple(layer(index) for index in layers),
        embed=embedding,
        final_norm=tensor("model.norm.weight") if head else None,
        head=lm_head,
    )
