"""Checkpoints that transformers writes, and its logits on them: the oracle of the model tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Family:
    """One checkpoint to write: the transformers class prefix and what differs from `BASE`."""

    name: str
    prefix: str
    options: dict[str, Any]


FAMILIES = [
    Family("llama", "Llama", {}),
    Family("llama-mha-tied", "Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    Family("llama-mqa-head-dim", "Llama", {"num_key_value_heads": 1, "head_dim": 24}),
    Family("llama-bias", "Llama", {"attention_bias": True}),
    Family("llama3-rope", "Llama", _rope(**LLAMA3) | {"max_position_embeddings": 256}),
    Family("llama-linear-rope", "Llama", _rope(rope_type="linear", factor=4.0)),
    Family(
        "llama-dynamic-rope",
        "Llama",
        _rope(rope_type="dynamic", factor=4.0) | {"max_position_embeddings": 32},
    ),
    Family("llama-yarn-rope", "Llama", _rope(**YARN)),
    Family("mistral-window", "Mistral", {"sliding_window": 7}),
    Family("mistral-no-window", "Mistral", {"sliding_window": None, "head_dim": 32}),
    Family("qwen2", "Qwen2", {}),
    Family(
        "qwen2-window",
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    Family("qwen2-tied", "Qwen2", {"tie_word_embeddings": True}),
    Family("qwen3", "Qwen3", {"head_dim": 32}),
    Family("qwen3-bias-tied", "Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    Family("qwen3-yarn", "Qwen3", {"head_dim": 16} | _rope(**YARN)),
]


def write_checkpoint(
    folder: Path,
    family: Family,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    seed: int = 0,
) -> Any:
    """Write a random checkpoint, biases and norms included; returns the transformers model."""
    import transformers

    config_class = getattr(transformers, f"{family.prefix}Config")
    model_class: Callable[..., Any] = getattr(transformers, f"{family.prefix}ForCausalLM")
    config = config_class(**(BASE | {"tie_word_embeddings": False} | family.options))
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.08 * noise)
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


@torch.no_grad()
def greedy_logits(model: Any, prompt: list[int], steps: int) -> tuple[torch.Tensor, list[int]]:
    """transformers' logits of the last prompt token and of `steps` greedy tokens.

    Returns:
        Logits [steps + 1, V] float32, and the `steps` tokens.
    """
    output = model(torch.tensor([prompt]), use_cache=True)
    rows = [output.logits[0, -1].float()]
    tokens: list[int] = []
    for _ in range(steps):
        tokens.append(int(rows[-1].argmax()))
        output = model(
            torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values, use_cache=True
        )
        rows.append(output.logits[0, -1].float())
    return torch.stack(rows), tokens
