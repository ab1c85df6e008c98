"""A stage without a model, for tests of scheduling: exact arithmetic, chosen delays and faults.

It keeps its sequences in a real `PagedKVCache`, so lengths, blocks and capacities behave as in a
`LlamaStage`. A layer adds its number and the position to every value, so that each row tells which
layers it went through and where; the head tells a row's sum and its token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernels.layout import KVLayout
from model.cache import PagedKVCache
from model.config import LlamaConfig
from model.stage import DecodeRow, StageSpec

HIDDEN, VOCAB = 8, 50


def fake_config(num_layers: int, **changes: Any) -> LlamaConfig:
    fields = {
        "hidden_size": HIDDEN,
        "intermediate_size": 8,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**(fields | changes))


class Fault(RuntimeError):
    """Raised by a fake stage where a test asked for it."""


class FakeStage:
    """Layers `spec.layers` of a model that does arithmetic only.

    Args:
        config: shape of the whole model.
        spec: this stage's part.
        seconds: slept in every computing operation, as a function of its rows.
        num_blocks: of its cache, 4 tokens each.
    """

    impl = "cpu"
    device = torch.device("cpu")

    def __init__(
        self,
        config: LlamaConfig,
        spec: StageSpec,
        *,
        seconds: Callable[[int], float] | None = None,
        num_blocks: int = 256,
    ) -> None:
        self.config = config
        self.spec = spec
        self.layout = KVLayout("fp32", 4, config.num_key_value_heads, config.head_dim)
        self.cache = PagedKVCache(self.layout, 0, num_blocks, config.max_seq_len)
        self.calls: list[tuple[str, int]] = []  # operation and rows, in order
        self.threads_seen: set[tuple[str, int, bool]] = set()
        self.before: Callable[[str, int], None] = lambda operation, number: None
        self.after: Callable[[str, int], None] = lambda operation, number: None
        self.seconds = seconds
        self.chore_seconds = 0.0  # slept in prepare, truncate and release
        self._counts: dict[str, int] = {}

    def fail(self, operation: str, number: int = 0, *, late: bool = False) -> None:
        """Raise `Fault` in the `number`-th call of an operation from now, before or after work."""
        self._counts.clear()

        def raise_there(name: str, count: int) -> None:
            if (name, count) == (operation, number):
                raise Fault(f"injected in {operation} {number}")

        if late:
            self.after = raise_there
        else:
            self.before = raise_there

    def mend(self) -> None:
        """No more faults."""
        self.before = self.after = lambda operation, number: None

    def prefill_tokens(self, seq_id: str, tokens: Sequence[int]) -> torch.Tensor:
        return self._append("prefill_tokens", [(seq_id, len(tokens))], self._embed(tokens))

    def prefill_hidden(self, seq_id: str, hidden: torch.Tensor) -> torch.Tensor:
        return self._append("prefill_hidden", [(seq_id, len(hidden))], hidden)

    def append_tokens(self, parts: Sequence[tuple[str, Sequence[int]]]) -> torch.Tensor:
        requests = [(seq_id, len(tokens)) for seq_id, tokens in parts]
        hidden = self._embed([token for _, tokens in parts for token in tokens])
        return self._append("append_tokens", requests, hidden)

    def append_hidden(self, parts: Sequence[tuple[str, int]], hidden: torch.Tensor) -> torch.Tensor:
        return self._append("append_hidden", list(parts), hidden)

    def decode_tokens(self, batch: Sequence[DecodeRow]) -> torch.Tensor:
        hidden = self._embed([row.token for row in batch])
        return self._append("decode_tokens", [(row.id, 1) for row in batch], hidden)

    def decode_hidden(self, batch: Sequence[DecodeRow], hidden: torch.Tensor) -> torch.Tensor:
        return self._append("decode_hidden", [(row.id, 1) for row in batch], hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with _Operation(self, "logits", len(hidden)):
            scores = torch.zeros(len(hidden), self.config.vocab_size)
            scores[:, 0] = hidden.sum(1)
            token = hidden[:, 0].long() % self.config.vocab_size
            scores[torch.arange(len(hidden)), token] += 1e6
            return scores

    def greedy(self, hidden: torch.Tensor) -> torch.Tensor:
        with _Operation(self, "greedy", len(hidden)):
            return hidden[:, 0].long() % self.config.vocab_size

    def prepare(self, seq_id: str, max_tokens: int) -> None:
        with _Operation(self, "prepare"):
            self.cache.prepare(seq_id, max_tokens)

    def cache_len(self, seq_id: str) -> int:
        return self.cache.cache_len(seq_id)

    def kv_capacity(self) -> int:
        return self.cache.kv_capacity

    def truncate(self, seq_id: str, new_len: int) -> None:
        with _Operation(self, "truncate"):
            self.cache.truncate(seq_id, new_len)

    def release(self, seq_id: str) -> None:
        with _Operation(self, "release"):
            self.cache.release(seq_id)

    def reset(self) -> None:
        self.cache.reset()

    def check_append(self, requests: Sequence[tuple[str, int]]) -> None:
        self.cache.check_append(requests)

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.float32)[:, None].repeat(1, HIDDEN)

    def _append(
        self, operation: str, requests: list[tuple[str, int]], hidden: torch.Tensor
    ) -> torch.Tensor:
        with _Operation(self, operation, len(hidden)), self.cache.append(requests) as paged:
            for layer in self.spec.layers:
                hidden = hidden + (layer + paged.positions[:, None])
            return hidden


class _Operation:
    """Counts, delays and breaks one operation; a chore has no rows."""

    def __init__(self, stage: FakeStage, name: str, rows: int = 0) -> None:
        self._stage = stage
        self._name = name
        self._rows = rows

    def __enter__(self) -> None:
        stage = self._stage
        stage.calls.append((self._name, self._rows))
        thread = threading.current_thread().name
        stage.threads_seen.add((thread, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        self._number = stage._counts.get(self._name, 0)
        stage._counts[self._name] = self._number + 1
        stage.before(self._name, self._number)
        if self._rows == 0:
            time.sleep(stage.chore_seconds)
        elif stage.seconds is not None:
            time.sleep(stage.seconds(self._rows))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._stage.after(self._name, self._number)


def fake_stages(layers: Sequence[int], **options: Any) -> list[FakeStage]:
    """Stages of so many layers each, the ends in place."""
    config = fake_config(sum(layers))
    stages, start = [], 0
    for index, count in enumerate(layers):
        spec = StageSpec(
            range(start, start + count), embed=index == 0, head=index == len(layers) - 1
        )
        stages.append(FakeStage(config, spec, **options))
        start += count
    return stages


def fake_logits(tokens: Sequence[int], num_layers: int) -> torch.Tensor:
    """What a whole fake model answers after `tokens`, [V]."""
    [stage] = fake_stages([num_layers])
    return stage.logits(stage.prefill_tokens("x", tokens))[-1]
