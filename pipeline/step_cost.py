"""What one decode step and its weights cost a device: seconds and bytes of layers and ends.

A part of a step takes the longer of what its bytes and its operations take: the roofline model
(Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785). Norms, RoPE and
launches are left out: they are small, and the same in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from kernels.dispatch import resolve_impl
from kernels.errors import InvalidInputError
from kernels.layout import KVLayout
from model.cache import blocks_for
from model.config import LlamaConfig
from model.rope import rope_table_bytes
from model.stage import cache_sizes
from model.stage_weights import resolve_dtype, resolve_kv_dtype
from model.weight_names import LM_HEAD, layer_names, linear_parts
from model.weights import WeightSource, stage_nbytes
from pipeline.device_profile import DeviceProfile
from pipeline.validation import as_int

WORKSPACE_TOKENS = 1024
"""Tokens of one call whose activations a stage is allowed for, beside weights and KV pools."""

CPU_ATTENTION_PASSES = 8
"""Times that a CPU's decode attention takes of reading K and V once.

It gathers the blocks of a sequence first, and the products of one query are slow. Measured on Zen 5
with 16 sequences of 512 tokens, 8 kv heads of 64 in bfloat16: 4.7 ms where reading takes 0.58 ms.
"""

_FLOAT32 = 4  # bytes of an activation, as the residual stream and logits have it


@dataclass(frozen=True)
class DecodeStep:
    """The step that is costed: so many sequences, with so many tokens in the cache each."""

    rows: int = 16
    context: int = 512

    def __post_init__(self) -> None:
        for name in ("rows", "context"):
            if as_int(getattr(self, name), name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; expected 1 or more")


@dataclass(frozen=True)
class LoadOptions:
    """The options of `LlamaStage.load` that decide on bytes."""

    impl: str = "auto"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    block_size: int = 16
    kv_tokens: int | None = None
    max_seq_len: int | None = None

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> LoadOptions:
        """Those that are among other options, and the defaults of the rest."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names})


@dataclass(frozen=True)
class Cost:
    """Bytes held and time taken; costs add up. Whole numbers, so that equal ones stay equal."""

    weight_bytes: int = 0
    kv_bytes: int = 0
    workspace_bytes: int = 0
    picoseconds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes

    @property
    def seconds(self) -> float:
        """The time of one decode step."""
        return self.picoseconds * 1e-12


class PartCosts:
    """Costs of a model's parts on one device.

    Raises `InvalidInputError` where `LlamaStage.load` would refuse the options.
    """

    def __init__(
        self,
        source: WeightSource,
        profile: DeviceProfile,
        load: LoadOptions,
        step: DecodeStep,
    ) -> None:
        self._source = source
        self._config = source.config
        self._profile = profile
        self._rows = step.rows
        impl = resolve_impl(load.impl, profile.name)
        self._attention_passes = CPU_ATTENTION_PASSES if profile.name == "cpu" else 1
        self._dtype = resolve_dtype(load.dtype, source.dtype, impl)
        self._kv_tokens, self._longest = cache_sizes(
            source.config, load.block_size, load.kv_tokens, load.max_seq_len
        )
        self._context = min(step.context, self._longest)
        self._layout = kv_layout(source, load)

    def layer(self, index: int) -> Cost:
        """One layer, by its index in the whole model."""
        window = self._config.window(index) or self._context
        seen = self._rows * min(window, self._context)
        heads = self._config.num_attention_heads * self._config.head_dim
        moved = self._attention_passes * seen * self._layout.bytes_per_token
        seconds = self._longer(moved, 4 * seen * heads)
        seconds += sum(
            self._linear(name)
            for kind, name in layer_names(self._config, index)
            if kind == "linear"
        )
        blocks = blocks_for(self._kv_tokens, self._layout.block_size)
        return Cost(
            weight_bytes=self._loaded(range(index, index + 1), embed=False, head=False),
            kv_bytes=blocks * self._layout.block_size * self._layout.bytes_per_token,
            picoseconds=_picoseconds(seconds),
        )

    def ends(self, *, embed: bool, head: bool) -> Cost:
        """What a stage has beside its layers: embedding, head with sampling, and workspace.

        The RoPE table, which each stage has, counts as workspace.
        """
        seconds = 0.0
        if embed:  # rows are gathered
            hidden = self._config.hidden_size
            seconds += self._longer(self._rows * hidden * (self._dtype.itemsize + _FLOAT32), 0)
        if head:  # logits are written once and read once
            logits = self._rows * self._config.vocab_size * _FLOAT32
            seconds += self._linear(LM_HEAD) + self._longer(2 * logits, 0)
        workspace = workspace_bytes(self._config, self._rows if head else 0)
        return Cost(
            weight_bytes=self._loaded(range(0), embed=embed, head=head),
            workspace_bytes=workspace + rope_table_bytes(self._config, self._longest),
            picoseconds=_picoseconds(seconds),
        )

    def _loaded(self, layers: range, *, embed: bool, head: bool) -> int:
        stored = stage_nbytes(self._source, layers, embed=embed, head=head)
        return stored * self._dtype.itemsize // self._source.dtype.itemsize

    def _linear(self, name: str) -> float:
        weight = sum(prod(shape) for _, *shape in linear_parts(self._config, name))
        return self._longer(weight * self._dtype.itemsize, 2 * self._rows * weight)

    def _longer(self, nbytes: int, operations: int) -> float:
        rate = self._profile.rate(self._dtype)
        return max(nbytes / self._profile.bandwidth, operations / rate)


def kv_layout(source: WeightSource, load: LoadOptions) -> KVLayout:
    """The layout of the KV pools."""
    return KVLayout(
        resolve_kv_dtype(load.kv_dtype, source.dtype),
        load.block_size,
        source.config.num_key_value_heads,
        source.config.head_dim,
    )


def workspace_bytes(config: LlamaConfig, logits_rows: int) -> int:
    """Allowance for activations: one layer's, of `WORKSPACE_TOKENS` tokens, and rows of logits.

    Counted as float32, which also covers the copies in other dtypes.
    """
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    # The residual stream before and after and its norm; q, k, v and what attention returns of q;
    # gate, up and their product.
    widths = (
        3 * config.hidden_size,
        (heads + config.num_attention_heads) * config.head_dim,
        3 * config.intermediate_size,
    )
    return _FLOAT32 * (WORKSPACE_TOKENS * sum(widths) + logits_rows * config.vocab_size)


def _picoseconds(seconds: float) -> int:
    return round(seconds * 1e12)
