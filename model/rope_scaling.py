"""RoPE fields of a `config.json`, in every spelling of transformers, as one typed value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.errors import InvalidInputError, UnsupportedError
from model.config_values import is_number, require_bool, require_positive_number

KINDS = ("linear", "dynamic", "llama3", "yarn")
_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
_SPELLINGS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# transformers writes this beside kinds that do not read it, where a checkpoint carried it.
_INERT = {"original_max_position_embeddings", "finetuned"}


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are changed for contexts longer than the pretraining's.

    `kind` says which fields count: `factor` for all; the two `*_freq_factor` for llama3;
    `original_max_position_embeddings` for llama3 and yarn; the rest for yarn. The meaning of each
    is that of transformers' `modeling_rope_utils`.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnsupportedError(f"rope scaling {self.kind!r}, supported: {', '.join(KINDS)}")
        positive = ["factor", "beta_fast", "beta_slow"]
        if self.kind == "llama3":
            positive += ["low_freq_factor", "high_freq_factor"]
        if self.kind in ("llama3", "yarn"):
            positive.append("original_max_position_embeddings")
        for name in positive:
            require_positive_number(f"{name} of {self.kind} rope scaling", getattr(self, name))
        require_bool(f"truncate of {self.kind} rope scaling", self.truncate)
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise InvalidInputError(
                f"high_freq_factor of llama3 rope scaling is {self.high_freq_factor}, expected "
                f"more than low_freq_factor, {self.low_freq_factor}"
            )
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and math.isfinite(value)):
                raise InvalidInputError(
                    f"{name} of {self.kind} rope scaling is {value!r}, expected a finite number "
                    "or null"
                )


def parse_rope(
    raw: Mapping[str, Any], max_position_embeddings: int
) -> tuple[float, RopeScaling | None]:
    """Base and scaling from a configuration's fields, in the order of transformers 5.

    `rope_scaling` wins over `rope_parameters` if both are there; a `rope_theta` inside wins over
    one at the top level; the base defaults to 1e4.

    Raises:
        UnsupportedError: a rope kind, a field or a partial rotation that is not implemented.
        InvalidInputError: a field with a value that makes no sense.
    """
    params = _flatten(raw)
    kind = params.get("rope_type") or params.get("type") or "default"
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise UnsupportedError(f"rope_type is {kind!r}, supported: {', '.join(_FIELDS)}")
    for partial in (params.get("partial_rotary_factor"), raw.get("partial_rotary_factor")):
        if partial is not None and partial != 1:
            raise UnsupportedError(f"partial_rotary_factor is {partial!r}, supported: 1.0")
    known = {*_FIELDS[kind], *_SPELLINGS, *_INERT}
    for name, value in params.items():
        if name not in known and value is not None:
            raise UnsupportedError(f"rope_type {kind!r} with {name} = {value!r} is not supported")
    theta = params.get("rope_theta")
    theta = raw.get("rope_theta") if theta is None else theta
    theta = 10000.0 if theta is None else theta
    if kind == "default":
        return theta, None
    given = {name: params[name] for name in _FIELDS[kind] if params.get(name) is not None}
    if kind in ("llama3", "yarn"):
        outer = raw.get("original_max_position_embeddings")
        if outer is not None:
            given["original_max_position_embeddings"] = outer
        trained = given.setdefault("original_max_position_embeddings", max_position_embeddings)
        if kind == "yarn" and is_number(trained) and trained > 0:
            given.setdefault("factor", max_position_embeddings / trained)
    required = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    for name in ("factor", *required):
        if name not in given:
            raise InvalidInputError(f"rope_type {kind!r} needs the field {name}, it is missing")
    return theta, RopeScaling(kind=kind, **given)


def _flatten(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The one set of rope fields; nested per layer type they must all agree."""
    for source in ("rope_scaling", "rope_parameters"):
        if raw.get(source):
            break
    else:
        return {}
    params = raw[source]
    if not isinstance(params, Mapping):
        raise InvalidInputError(f"{source} is {params!r}, expected an object with a rope_type")
    nested = [value for value in params.values() if isinstance(value, Mapping)]
    if not nested:
        return dict(params)
    if len(nested) != len(params) or any(value != nested[0] for value in nested):
        raise UnsupportedError(
            f"{source} is {dict(params)!r}: rope that differs by layer type is not supported"
        )
    return dict(nested[0])
