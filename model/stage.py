"""A stage: some consecutive layers of a Llama, with the embedding and the head if it has the ends.

A stage knows nothing of other stages. It takes tokens or a hidden state, appends to its own KV
cache and returns the float32 residual stream, so a model cut anywhere computes what the whole does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch

from kernels.dispatch import resolve_impl
from kernels.errors import InvalidInputError
from kernels.layout import KVLayout
from kernels.linear import PackedLinear
from kernels.logits import greedy, logits
from kernels.override import overridden
from model.cache import PagedKVCache
from model.config import LlamaConfig
from model.config_values import is_int
from model.layers import decoder_layer
from model.paged_batch import PagedBatch, to_device
from model.rope import RopeTable
from model.stage_weights import StageWeights, load_stage_weights, resolve_dtype, resolve_kv_dtype
from model.step_graph import Capture, CudaCapture, StepGraphs
from model.weights import WeightSource

Progress = Callable[[str, int], None]
"""Called with a tensor's name and its bytes in the checkpoint, after it is loaded."""


class DecodeRow(NamedTuple):
    """One sequence of a decode batch: its next token and that token's position."""

    id: str
    token: int
    pos: int


@dataclass(frozen=True)
class StageSpec:
    """Which part of a model a stage holds: a half-open layer range and the two ends."""

    layers: range
    embed: bool
    head: bool

    def validate(self, config: LlamaConfig) -> None:
        """Raise `InvalidInputError` unless the range is a non-empty part of the model."""
        start, stop = self.layers.start, self.layers.stop
        if self.layers.step != 1 or start < 0 or stop <= start or stop > config.num_hidden_layers:
            raise InvalidInputError(
                f"stage layers {start}..{stop} are not a non-empty range of the model's "
                f"{config.num_hidden_layers} layers"
            )


def default_kv_tokens(max_seq_len: int) -> int:
    """Tokens that a stage's pools hold unless told: 32 sequences, at most 64 Ki tokens in all."""
    return max(max_seq_len, min(32 * max_seq_len, 65536))


def cache_sizes(
    config: LlamaConfig, block_size: int, kv_tokens: int | None, max_seq_len: int | None
) -> tuple[int, int]:
    """Tokens that a stage's pools hold, and the positions of its longest sequence; None: default.

    Raises `InvalidInputError` for a number that is no positive integer, or more positions than the
    model has.
    """
    for name, value in (
        ("block_size", block_size),
        ("kv_tokens", kv_tokens),
        ("max_seq_len", max_seq_len),
    ):
        if value is not None and not is_int(value):
            raise InvalidInputError(f"{name} is {value!r}, expected an integer")
    limit = config.max_seq_len
    if max_seq_len is None:
        max_seq_len = limit
    elif not 1 <= max_seq_len <= limit:
        raise InvalidInputError(
            f"max_seq_len is {max_seq_len}, expected 1 to {limit}, the model's positions"
        )
    if block_size < 1:
        raise InvalidInputError(f"block_size is {block_size}, expected at least 1")
    if kv_tokens is None:
        kv_tokens = default_kv_tokens(max_seq_len)
    elif kv_tokens < 1:
        raise InvalidInputError(f"kv_tokens is {kv_tokens}, expected at least 1")
    return kv_tokens, max_seq_len


class LlamaStage:
    """Layers `spec.layers` of a model with their paged KV cache.

    All calls of one stage must come from one thread at a time. Every operation is atomic: if it
    raises, the stage's cache is as before. No operation of `impl` "triton" waits for the GPU.

    Args:
        capture: how decode steps are captured, to be run again; None runs them as they are. Steps
            run as they are, too, while `kernels.override` replaces an operator, or with more rows
            than `model.step_graph.BUCKETS` has.
    """

    def __init__(
        self,
        config: LlamaConfig,
        spec: StageSpec,
        weights: StageWeights,
        cache: PagedKVCache,
        rope: RopeTable,
        impl: str,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.spec = spec
        self.weights = weights
        self.cache = cache
        self.impl = impl
        self._rope = rope
        self._graphs = None
        if capture is not None:
            self._graphs = StepGraphs(capture, cache.max_blocks, cache.device)

    @classmethod
    def load(
        cls,
        checkpoint: WeightSource | str | PathLike[str],
        spec: StageSpec,
        *,
        impl: str = "auto",
        device: torch.device | str = "cpu",
        dtype: str = "auto",
        kv_dtype: str = "auto",
        block_size: int = 16,
        kv_tokens: int | None = None,
        max_seq_len: int | None = None,
        cuda_graphs: bool = True,
        progress: Progress | None = None,
    ) -> LlamaStage:
        """Read one stage's own tensors and build it.

        Args:
            checkpoint: a folder in Hugging Face format, or an opened weight source.
            spec: the part of the model to load.
            impl: "auto" (CUDA: triton, CPU: cpu), "triton", "cpu" or "reference".
            device: where weights and cache live.
            dtype: of the weights: "auto" (the checkpoint's; float16 becomes float32 under "cpu",
                which has no fast float16 product), "fp32", "fp16" or "bf16".
            kv_dtype: "auto" (the checkpoint's), "fp32", "fp16", "bf16" or "int8".
            block_size: tokens per cache block.
            kv_tokens: tokens that the pools hold, over all sequences; rounded up to blocks.
            max_seq_len: most positions of one sequence, at most (and by default) the model's
                `max_position_embeddings`, times the factor for dynamic RoPE scaling.
            cuda_graphs: whether decode steps of up to 64 rows run as captured CUDA graphs. Only
                "triton" on CUDA has steps that can be captured; all others run as they are.
            progress: told of every tensor read.

        Raises:
            CheckpointError: something is wrong with the files.
            InvalidInputError: an argument is out of range.
            UnsupportedError: the implementation cannot be had here.
        """
        source = _open(checkpoint)
        config = source.config
        spec.validate(config)
        try:
            device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise InvalidInputError(f"device is {device!r}, expected cpu or cuda:N") from error
        impl = resolve_impl(impl, device)
        kv_tokens, max_seq_len = cache_sizes(config, block_size, kv_tokens, max_seq_len)
        layout = KVLayout(
            resolve_kv_dtype(kv_dtype, source.dtype),
            block_size,
            config.num_key_value_heads,
            config.head_dim,
        )
        weights = load_stage_weights(
            source,
            spec.layers,
            embed=spec.embed,
            head=spec.head,
            dtype=resolve_dtype(dtype, source.dtype, impl),
            device=device,
            impl=impl,
            progress=progress,
        )
        cache = PagedKVCache(
            layout, len(spec.layers), -(-kv_tokens // block_size), max_seq_len, device
        )
        rope = RopeTable.build(config, max_seq_len, device)
        capture = cuda_graphs and impl == "triton" and device.type == "cuda"
        return cls(
            config, spec, weights, cache, rope, impl, CudaCapture(device) if capture else None
        )

    def __repr__(self) -> str:
        ends = "".join(
            f", {name}"
            for name, has in (("embed", self.spec.embed), ("head", self.spec.head))
            if has
        )
        decode = ""
        if self.device.type == "cuda":
            decode = ", decode=eager" if self._graphs is None else ", decode=cuda graphs"
        return (
            f"LlamaStage(layers={self.spec.layers.start}-{self.spec.layers.stop - 1}{ends}, "
            f"impl={self.impl}, device={self.device}, kv={self.layout.dtype}{decode})"
        )

    @property
    def device(self) -> torch.device:
        """Where the stage computes."""
        return self.cache.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weights.layers[0].qkv.dtype

    @property
    def layout(self) -> KVLayout:
        """Layout of the KV pools."""
        return self.cache.layout

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights; tied embeddings held at both ends count once."""
        return self.weights.nbytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV pools."""
        return self.cache.nbytes

    def prefill_tokens(self, seq_id: str, tokens: Sequence[int]) -> torch.Tensor:
        """Append tokens to a sequence; its residual stream, [T, H] float32. First stage only."""
        return self.append_tokens([(seq_id, tokens)])

    def prefill_hidden(self, seq_id: str, hidden: torch.Tensor) -> torch.Tensor:
        """Append the tokens behind `hidden` [T, H] float32; the new residual stream, same shape."""
        self._check_hidden(hidden, None)
        return self.append_hidden([(seq_id, hidden.shape[0])], hidden)

    @torch.inference_mode()
    def append_tokens(self, parts: Sequence[tuple[str, Sequence[int]]]) -> torch.Tensor:
        """Append tokens to several sequences, each once, and each beginning where it ended.

        Returns the residual stream of all T tokens in order, [T, H] float32. First stage only.
        """
        for _, tokens in parts:
            self._check_tokens(tokens)
        ids = self._ids([token for _, tokens in parts for token in tokens])
        with self.cache.append([(seq_id, len(tokens)) for seq_id, tokens in parts]) as batch:
            return self._run(ids, batch)

    @torch.inference_mode()
    def append_hidden(self, parts: Sequence[tuple[str, int]], hidden: torch.Tensor) -> torch.Tensor:
        """As `append_tokens` for a later stage: (sequence, number of tokens) and their `hidden`.

        `hidden` [T, H] float32 is the earlier stage's; the new residual stream has its shape.
        """
        self._check_hidden(hidden, sum(count for _, count in parts))
        with self.cache.append(parts) as batch:
            return self._run(hidden, batch)

    @torch.inference_mode()
    def decode_tokens(self, batch: Sequence[DecodeRow]) -> torch.Tensor:
        """One token for each of B sequences; the residual stream, [B, H] float32. First stage only.

        Raises:
            InvalidInputError: a token outside the vocabulary, a position that is not its
                sequence's length, or a sequence named twice.
            CapacityError: too few free blocks, or a sequence at its end.
        """
        tokens = [row[1] for row in batch]
        self._check_tokens(tokens)
        self._check_positions(batch)
        ids = self._ids(tokens)
        with self.cache.append([(row[0], 1) for row in batch]) as paged:
            return self._decode(ids, paged)

    @torch.inference_mode()
    def decode_hidden(self, batch: Sequence[DecodeRow], hidden: torch.Tensor) -> torch.Tensor:
        """As `decode_tokens` for a later stage; `hidden` [B, H] float32 is the earlier one's."""
        self._check_hidden(hidden, len(batch))
        self._check_positions(batch)
        with self.cache.append([(row[0], 1) for row in batch]) as paged:
            return self._decode(hidden, paged)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and head over a residual stream [N, H]: [N, V] float32. Last stage only."""
        self._check_hidden(hidden, None)
        norm, head = self._require_head()
        return logits(hidden, norm, self.config.rms_norm_eps, head, impl=self.impl)

    @torch.inference_mode()
    def greedy(self, hidden: torch.Tensor) -> torch.Tensor:
        """Most likely next tokens of a residual stream [N, H]: [N] int64, ties to the lowest id."""
        self._check_hidden(hidden, None)
        norm, head = self._require_head()
        return greedy(hidden, norm, self.config.rms_norm_eps, head, impl=self.impl)

    def prepare(self, seq_id: str, max_tokens: int) -> None:
        """Reserve cache blocks for `max_tokens` positions; see `PagedKVCache.prepare`."""
        self.cache.prepare(seq_id, max_tokens)

    def cache_len(self, seq_id: str) -> int:
        """Committed tokens of a sequence; 0 if unknown."""
        return self.cache.cache_len(seq_id)

    def kv_capacity(self) -> int:
        """Most positions that one sequence can hold."""
        return self.cache.kv_capacity

    def truncate(self, seq_id: str, new_len: int) -> None:
        """Shorten a sequence; an unknown one is left alone."""
        self.cache.truncate(seq_id, new_len)

    def release(self, seq_id: str) -> None:
        """Forget a sequence; an unknown one is left alone."""
        self.cache.release(seq_id)

    def reset(self) -> None:
        """Forget every sequence."""
        self.cache.reset()

    def check_append(self, requests: Sequence[tuple[str, int]]) -> None:
        """Raise if the cache cannot take these tokens; see `PagedKVCache.check_append`."""
        self.cache.check_append(requests)

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        """Token ids on the host, int64 [T]."""
        if self.weights.embed is None:
            raise InvalidInputError(f"{self!r} has no embedding, it takes hidden states")
        return torch.tensor(tokens, dtype=torch.int64)

    def _decode(self, x: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        graphs = self._graphs
        if graphs is None or not graphs.takes(batch.rows) or overridden():
            return self._run(x, batch)
        return graphs.run(self._step, x, batch)

    def _run(self, x: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """`_step` now, on ids of the host or hidden states of the device."""
        return self._step(to_device(x, self.device), batch.to(self.device))

    def _step(self, x: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """Token ids [T] or a residual stream [T, H] -> the residual stream after the layers."""
        hidden = x
        if x.dtype == torch.int64:
            assert self.weights.embed is not None
            hidden = self.weights.embed(x)
        rope = self._rope.rows(batch.positions, batch.token_kv_len)
        for local, source_layer in enumerate(self.spec.layers):
            hidden = decoder_layer(
                hidden,
                self.weights.layers[local],
                self.cache.pools[local],
                batch,
                rope,
                self.config,
                self.config.window(source_layer),
                self.impl,
            )
        return hidden

    def _require_head(self) -> tuple[torch.Tensor, PackedLinear]:
        if self.weights.head is None or self.weights.final_norm is None:
            raise InvalidInputError(f"{self!r} has no head, it gives hidden states")
        return self.weights.final_norm, self.weights.head

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise InvalidInputError("no tokens: a call needs at least one")
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidInputError(f"tokens are {tokens!r}, expected a list of integers")
        vocab = self.config.vocab_size
        outside = (ids < 0) | (ids >= vocab)
        if outside.any():
            bad = ids[outside.argmax()]
            raise InvalidInputError(f"token id {bad} is outside the vocabulary of {vocab}")

    def _check_positions(self, batch: Sequence[DecodeRow]) -> None:
        for seq_id, _, pos in batch:
            length = self.cache.cache_len(seq_id)
            if pos != length:
                raise InvalidInputError(
                    f"sequence {seq_id!r} is at length {length}, got a token for position {pos}"
                )

    def _check_hidden(self, hidden: torch.Tensor, rows: int | None) -> None:
        expected = ("rows" if rows is None else rows, self.config.hidden_size)
        device = self.cache.pools[0].k.device  # with the index that "cuda" alone leaves open
        if (
            hidden.ndim != 2
            or hidden.shape[1] != self.config.hidden_size
            or not hidden.shape[0]
            or (rows is not None and hidden.shape[0] != rows)
            or hidden.dtype != torch.float32
            or hidden.device != device
        ):
            raise InvalidInputError(
                f"hidden is {list(hidden.shape)} {hidden.dtype} on {hidden.device}, expected "
                f"[{expected[0]}, {expected[1]}] torch.float32 on {device}"
            )


def _open(checkpoint: WeightSource | str | PathLike[str]) -> WeightSource:
    if isinstance(checkpoint, str | PathLike):
        from model.checkpoint import Checkpoint

        return Checkpoint.open(checkpoint)
    return checkpoint
