"""A whole model's decode step, random weights: how near to the time that reading them takes.

`python -m tests.bench.step` needs a GPU with room for the shape; `make gpu` runs it.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from kernels.benchmarking.timing import copy_bandwidth
from model.config import LlamaConfig
from model.parity_weights import ParityWeights
from model.stage import LlamaStage, StageSpec
from model.weight_names import tensor_shape
from model.weights import LinearWeights

_WARM_UP = 4  # steps that compile and capture

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
    },
}  # fmt: skip


def config_of(shape: str) -> LlamaConfig:
    """A Llama of one of `SHAPES`, head and embedding apart."""
    return LlamaConfig.from_dict(
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            **SHAPES[shape],
        }
    )


class RandomWeights(ParityWeights):
    """bfloat16 weights that are parts of one random pool: quick to make, whatever the size."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.dtype = torch.bfloat16
        generator = torch.Generator().manual_seed(0)
        self._pool = (torch.randn((1 << 24) + 1, generator=generator) * 0.02).bfloat16()

    def tensor(self, name: str) -> torch.Tensor:
        """Norms are ones."""
        shape = tensor_shape(self.config, name)
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return self._part(*shape)

    def linear(self, name: str) -> LinearWeights:
        """Without a bias."""
        return LinearWeights(self._part(*self._linear_shape(name)), None)

    def nbytes(self, name: str) -> int:
        """Half of float32's."""
        return super().nbytes(name) // 2

    def _part(self, rows: int, columns: int) -> torch.Tensor:
        # The pool's size is odd, so that rows do not repeat.
        copies = -(-rows * columns // len(self._pool))
        return self._pool.repeat(copies)[: rows * columns].view(rows, columns)


def measure(shape: str, device: str, batch: int, context: int, steps: int) -> dict[str, Any]:
    """Median and spread of `steps` greedy steps of `batch` rows after `context` tokens each.

    A step is what generation does: ids in, ids out, on the host. `fraction_of_bound` is the time
    that a copy's bandwidth needs for weights and cache, over the median.
    """
    config = config_of(shape)
    layers = range(config.num_hidden_layers)
    room = batch * (context + steps + 64)
    stage = LlamaStage.load(
        RandomWeights(config), StageSpec(layers, True, True), device=device, kv_tokens=room
    )
    rows = [str(row) for row in range(batch)]
    for row in rows:
        hidden = stage.prefill_tokens(row, [1 + i % 100 for i in range(context)])
    tokens = stage.greedy(hidden[-1:]).tolist() * batch
    times = []
    for step in range(steps + _WARM_UP):
        start = time.perf_counter()
        last = [(r, token, context + step) for r, token in zip(rows, tokens, strict=True)]
        tokens = stage.greedy(stage.decode_tokens(last)).tolist()
        times.append(time.perf_counter() - start)
    found = _figures("lamella", shape, batch, context, times)
    embedding = config.vocab_size * config.hidden_size * 2
    cache = batch * (context + steps // 2) * stage.layout.bytes_per_token * len(layers)
    moved = stage.weight_bytes - embedding + cache
    bound = moved / copy_bandwidth(device)
    return {
        **found,
        "stage": repr(stage),
        "bytes": moved,
        "fraction_of_bound": bound / (found["median_us"] * 1e-6),
    }


def measure_transformers(
    shape: str, device: str, batch: int, context: int, steps: int, compiled: bool = True
) -> dict[str, Any]:
    """The same steps by transformers with a static cache, through torch.compile if `compiled`."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM, StaticCache

    ours = config_of(shape)
    config = TheirConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        rms_norm_eps=ours.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    cache = StaticCache(config=config, max_cache_len=context + steps + 64)

    def step_of(ids: Tensor, positions: Tensor) -> Tensor:
        logits = model(ids, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1)

    decode = torch.compile(step_of, mode="reduce-overhead", fullgraph=True) if compiled else step_of
    with torch.no_grad():
        prompt = torch.tensor([[1 + i % 100 for i in range(context)]] * batch, device=device)
        positions = torch.arange(context, device=device).expand(batch, -1)
        tokens = step_of(prompt, positions).tolist()
        times = []
        for step in range(steps + _WARM_UP):
            start = time.perf_counter()
            ids = torch.tensor(tokens, device=device)[:, None]
            positions = torch.full((batch, 1), context + step, device=device)
            tokens = decode(ids, positions).tolist()
            times.append(time.perf_counter() - start)
    return _figures("transformers", shape, batch, context, times)


def _figures(impl: str, shape: str, batch: int, context: int, times: list[float]) -> dict[str, Any]:
    low, middle, high = quantiles(times[_WARM_UP:], n=4)
    return {
        "impl": impl,
        "shape": shape,
        "batch": batch,
        "context": context,
        "median_us": middle * 1e6,
        "spread": (high - low) / 2 / middle,
        "tokens_per_s": batch / middle,
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()
    found = measure(args.shape, args.device, args.batch, args.context, args.steps)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
