"""The supported model families, and how each reads the fields it shares with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.errors import InvalidInputError, UnsupportedError
from model.config_values import is_int, or_default, require_positive_int

FULL, SLIDING = "full_attention", "sliding_attention"

# model_type -> (architecture, positions where config.json does not say)
FAMILIES = {
    "llama": ("LlamaForCausalLM", 2048),
    "mistral": ("MistralForCausalLM", 131072),
    "qwen2": ("Qwen2ForCausalLM", 32768),
    "qwen3": ("Qwen3ForCausalLM", 32768),
}


def require_family(model_type: object) -> str:
    """The model_type, if it is supported; else `UnsupportedError`."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedError(f"model_type is {model_type!r}, supported: {', '.join(FAMILIES)}")
    return model_type


def refuse_unsupported(raw: Mapping[str, Any], model_type: str) -> None:
    """Raise `UnsupportedError` for an option of the family that is not implemented; names it."""
    architecture = FAMILIES[model_type][0]
    architectures = raw.get("architectures")
    if architectures and architectures != [architecture]:
        raise UnsupportedError(
            f"architectures is {architectures!r}, supported for {model_type}: {architecture}"
        )
    quantization = raw.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UnsupportedError(
            f"quantization_config has quant_method {method!r}, supported: unquantised weights "
            "(float32, float16, bfloat16)"
        )
    if raw.get("hidden_act") not in (None, "silu", "swish"):
        raise UnsupportedError(f"hidden_act is {raw['hidden_act']!r}, supported: 'silu'")
    for name in ("mlp_bias", "is_encoder_decoder"):
        if raw.get(name):
            raise UnsupportedError(f"{name} is {raw[name]!r}, supported: false")
    if raw.get("attention_bias") and model_type == "mistral":
        raise UnsupportedError(f"attention_bias is {raw['attention_bias']!r}, a mistral has none")
    norm = model_type == "qwen3"
    if or_default(raw.get("qk_norm"), norm) != norm:
        raise UnsupportedError(f"qk_norm is {raw['qk_norm']!r}, supported for {model_type}: {norm}")


def attention_pattern(
    raw: Mapping[str, Any], model_type: str, positions: int
) -> tuple[int | None, tuple[str, ...] | None]:
    """Sliding window, and the type of each layer or None where all are alike.

    A llama has no window. All layers of a mistral slide, with 4096 where the field is absent.
    Of a qwen2 or qwen3 with `use_sliding_window`, those that `layer_types` names slide, or those
    from `max_window_layers`.
    """
    layers = raw["num_hidden_layers"]
    window = raw.get("sliding_window", 4096 if model_type == "mistral" else None)
    if window is not None:
        require_positive_int("sliding_window", window)
    if model_type == "llama":
        if window is not None and window < positions:
            raise UnsupportedError(f"sliding_window is {window}, supported for llama: null")
        window = None
    elif model_type != "mistral" and not raw.get("use_sliding_window"):
        window = None
    if raw.get("layer_types") is not None:
        return window, _layer_types(raw["layer_types"], model_type, window, layers)
    if model_type == "mistral" or window is None:
        return window, None
    first = or_default(raw.get("max_window_layers"), 28)
    if not is_int(first) or first < 0:
        raise InvalidInputError(f"max_window_layers is {first!r}, expected an integer from 0")
    return window, tuple(SLIDING if layer >= first else FULL for layer in range(layers))


def _layer_types(
    value: object, model_type: str, window: int | None, layers: int
) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidInputError(f"layer_types is {value!r}, expected a list of names")
    types = tuple(FULL if kind == "attention" else kind for kind in value)
    if model_type == "mistral" and types != (FULL if window is None else SLIDING,) * layers:
        raise UnsupportedError(
            f"layer_types is {value!r}, but a mistral's layers all slide or, with sliding_window "
            "null, none"
        )
    return types
