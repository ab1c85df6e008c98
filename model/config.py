"""The shape of a Llama-family model, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from kernels.errors import CheckpointError, InvalidInputError, UnsupportedError
from model.config_fields import check_unknown_fields
from model.config_values import (
    or_default,
    require_bool,
    require_positive_int,
    require_positive_number,
    token_ids,
)
from model.families import (
    FAMILIES,
    FULL,
    SLIDING,
    attention_pattern,
    refuse_unsupported,
    require_family,
)
from model.json_file import read_json
from model.rope_scaling import RopeScaling, parse_rope

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Dimensions and options of a whole model; Hugging Face field names.

    Attributes:
        rope_interleaved: rotate neighbouring pairs of a head instead of its two halves.
        qk_norm: RMSNorm of every query and key head before RoPE (qwen3).
        attention_bias: biases on q, k and v; on o_proj too, except in qwen2.
        sliding_window: positions that a sliding layer sees, its own among them, or None.
        layer_types: per layer "full_attention" or "sliding_attention"; None: all slide
            if there is a `sliding_window`.
        eos_token_ids: those of `config.json`; the tokenizer also reads `generation_config.json`.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    tie_word_embeddings: bool = False
    model_type: str = "llama"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_family(self.model_type)
        for name in (*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            require_positive_int(name, getattr(self, name))
        if self.sliding_window is not None:
            require_positive_int("sliding_window", self.sliding_window)
        for name in ("rms_norm_eps", "rope_theta"):
            require_positive_number(name, getattr(self, name))
        for name in ("rope_interleaved", "qk_norm", "attention_bias", "tie_word_embeddings"):
            require_bool(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidInputError(
                f"num_attention_heads is {self.num_attention_heads}, expected a multiple of "
                f"num_key_value_heads, {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InvalidInputError(f"head_dim is {self.head_dim}, expected an even number")
        if self._is_dynamic and self.head_dim == 2:  # its base grows by a power of D / (D - 2)
            raise InvalidInputError("head_dim is 2, dynamic rope scaling needs at least 4")
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "yarn" and self.rope_theta <= 1:
            raise InvalidInputError(
                f"rope_theta is {self.rope_theta}, yarn rope scaling needs more than 1"
            )
        self._check_layer_types()

    def _check_layer_types(self) -> None:
        if self.layer_types is None:
            return
        if len(self.layer_types) != self.num_hidden_layers:
            raise InvalidInputError(
                f"layer_types has {len(self.layer_types)} entries, expected num_hidden_layers, "
                f"{self.num_hidden_layers}"
            )
        for kind in self.layer_types:
            if kind not in (FULL, SLIDING):
                raise UnsupportedError(f"layer_types has {kind!r}, supported: {FULL}, {SLIDING}")
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise InvalidInputError(
                f"sliding_window is None, expected a number: layer_types has {SLIDING!r}"
            )

    @property
    def _is_dynamic(self) -> bool:
        return self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"

    @property
    def has_o_bias(self) -> bool:
        """Whether o_proj has a bias too: qwen2 biases only q, k and v."""
        return self.attention_bias and self.model_type != "qwen2"

    @property
    def max_seq_len(self) -> int:
        """Most positions a sequence may take; dynamic scaling stretches the trained length."""
        if self.rope_scaling is not None and self._is_dynamic:
            return int(self.max_position_embeddings * max(1.0, self.rope_scaling.factor))
        return self.max_position_embeddings

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer, by its index in the whole model; None: it sees everything."""
        if not 0 <= layer < self.num_hidden_layers:
            raise InvalidInputError(f"layer is {layer}, expected 0 to {self.num_hidden_layers - 1}")
        if self.layer_types is not None and self.layer_types[layer] == FULL:
            return None
        return self.sliding_window

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> LlamaConfig:
        """Read a `config.json`, or the one in a folder.

        Raises:
            CheckpointError: the file or a field is missing or makes no sense; names both.
            UnsupportedError: as `from_dict`.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        try:
            return cls.from_dict(read_json(file))
        except UnsupportedError as error:
            raise UnsupportedError(f"{file}: {error}") from error
        except InvalidInputError as error:
            raise CheckpointError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LlamaConfig:
        """Build from the fields of a `config.json`, old or new spelling.

        Absent kv heads are as many as heads, absent head_dim is hidden_size / heads, absent
        eps is 1e-6 and absent rope_theta 1e4.

        Raises:
            UnsupportedError: a model, option or field that is not implemented; names it.
            InvalidInputError: a field is missing or has a value that makes no sense.
        """
        model_type = require_family(raw.get("model_type"))
        refuse_unsupported(raw, model_type)
        check_unknown_fields(raw)
        for name in _REQUIRED:
            if raw.get(name) is None:
                raise InvalidInputError(f"{name} is missing, expected a positive integer")
            require_positive_int(name, raw[name])
        positions = or_default(raw.get("max_position_embeddings"), FAMILIES[model_type][1])
        require_positive_int("max_position_embeddings", positions)
        theta, scaling = parse_rope(raw, positions)
        window, layer_types = attention_pattern(raw, model_type, positions)
        bos = token_ids("bos_token_id", raw.get("bos_token_id"))
        return cls(
            **{name: raw[name] for name in _REQUIRED},
            num_key_value_heads=or_default(
                raw.get("num_key_value_heads"), raw["num_attention_heads"]
            ),
            head_dim=_head_dim(raw),
            max_position_embeddings=positions,
            rms_norm_eps=or_default(raw.get("rms_norm_eps"), 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            rope_interleaved=or_default(raw.get("rope_interleaved"), False),
            qk_norm=model_type == "qwen3",
            attention_bias=model_type == "qwen2" or or_default(raw.get("attention_bias"), False),
            sliding_window=window,
            layer_types=layer_types,
            tie_word_embeddings=or_default(raw.get("tie_word_embeddings"), False),
            model_type=model_type,
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=token_ids("eos_token_id", raw.get("eos_token_id")),
        )


def _head_dim(raw: Mapping[str, Any]) -> Any:
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    if raw.get("head_dim") is not None:
        return raw["head_dim"]
    if hidden % heads:
        raise InvalidInputError(
            f"hidden_size is {hidden}, expected a multiple of num_attention_heads, {heads}, "
            "where there is no head_dim"
        )
    return hidden // heads
