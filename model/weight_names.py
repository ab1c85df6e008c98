"""Names and shapes of a Llama's tensors: as Hugging Face stores them, and as stages read them.

H hidden, I intermediate, Hq/Hkv query and kv heads, D head dim, V vocabulary.
"""

from __future__ import annotations

import re

from kernels.errors import InvalidInputError
from model.config import LlamaConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head"

_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d*)\.(.+)", re.ASCII)
_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


def layer_names(config: LlamaConfig, layer: int) -> tuple[tuple[str, str], ...]:
    """(kind, name) of one layer's weights in the order of use; kind "tensor" or "linear"."""
    prefix = f"model.layers.{layer}."
    qk_norm = ("self_attn.q_norm.weight", "self_attn.k_norm.weight") if config.qk_norm else ()
    order: tuple[tuple[str, str], ...] = (
        ("tensor", "input_layernorm.weight"),
        ("linear", "self_attn.qkv_proj"),
        *(("tensor", name) for name in qk_norm),
        ("linear", "self_attn.o_proj"),
        ("tensor", "post_attention_layernorm.weight"),
        ("linear", "mlp.gate_up_proj"),
        ("linear", "mlp.down_proj"),
    )
    return tuple((kind, prefix + name) for kind, name in order)


def tensor_shape(config: LlamaConfig, name: str) -> tuple[int, ...]:
    """Shape of the embedding or a norm; `InvalidInputError` for a name the model has not."""
    hidden = config.hidden_size
    if name == EMBEDDING:
        return (config.vocab_size, hidden)
    if name == FINAL_NORM:
        return (hidden,)
    rest = _layer_part(config, name)
    if rest in ("input_layernorm.weight", "post_attention_layernorm.weight"):
        return (hidden,)
    if config.qk_norm and rest in ("self_attn.q_norm.weight", "self_attn.k_norm.weight"):
        return (config.head_dim,)
    raise InvalidInputError(f"the model has no tensor {name!r}")


def linear_parts(config: LlamaConfig, name: str) -> tuple[tuple[str, int, int], ...]:
    """(stored name without ".weight", rows N, columns K) of each part of a fused linear, in order.

    Raises:
        InvalidInputError: the model has no linear of this name.
    """
    if name == LM_HEAD:
        return ((LM_HEAD, config.vocab_size, config.hidden_size),)
    rest = _layer_part(config, name)
    if rest not in _FUSED:
        raise InvalidInputError(f"the model has no linear {name!r}")
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.o_proj": (hidden, q_rows),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    prefix = name[: -len(rest)]
    return tuple((prefix + part, *shapes[part]) for part in _FUSED[rest])


def has_bias(config: LlamaConfig, name: str) -> bool:
    """Whether a linear, fused or not, has a bias."""
    if name.endswith((".q_proj", ".k_proj", ".v_proj", ".qkv_proj")):
        return config.attention_bias
    return name.endswith(".o_proj") and config.has_o_bias


def stored_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model as Hugging Face stores it, with its shape; lm_head included."""
    names = [("tensor", EMBEDDING), ("tensor", FINAL_NORM), ("linear", LM_HEAD)]
    for layer in range(config.num_hidden_layers):
        names += layer_names(config, layer)
    shapes: dict[str, tuple[int, ...]] = {}
    for kind, name in names:
        if kind == "tensor":
            shapes[name] = tensor_shape(config, name)
            continue
        for part, rows, columns in linear_parts(config, name):
            shapes[f"{part}.weight"] = (rows, columns)
            if has_bias(config, part):
                shapes[f"{part}.bias"] = (rows,)
    return shapes


def _layer_part(config: LlamaConfig, name: str) -> str:
    """What follows "model.layers.<i>." for a layer that exists, else an empty text."""
    match = _LAYER.fullmatch(name)
    if match is None or int(match[1]) >= config.num_hidden_layers:
        return ""
    return match[2]
