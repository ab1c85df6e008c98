"""Where a stage's weights come from: the protocol that checkpoints and `ParityWeights` share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from model.config import LlamaConfig
from model.weight_names import EMBEDDING, FINAL_NORM, LM_HEAD, layer_names

__all__ = ["LinearWeights", "WeightSource", "layer_names", "stage_names", "stage_nbytes"]


class LinearWeights(NamedTuple):
    """Weight [N, K] of a (possibly fused) linear and its bias [N], if it has one."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class WeightSource(Protocol):
    """Weights by name. Linears are named fused and without ".weight", see `weight_names`."""

    @property
    def config(self) -> LlamaConfig:
        """Shape of the whole model."""

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of all weights: float32, float16 or bfloat16."""

    def tensor(self, name: str) -> torch.Tensor:
        """The embedding [V, H] or a norm's weight; a new tensor on the CPU."""

    def linear(self, name: str) -> LinearWeights:
        """A linear's weight and bias, fused where several are; new tensors on the CPU."""

    def has(self, name: str) -> bool:
        """Whether a tensor is stored; without "lm_head.weight" the embedding is the head."""

    def nbytes(self, name: str) -> int:
        """Bytes that `tensor(name)` or `linear(name)` takes as stored, without reading it."""


def stage_names(
    source: WeightSource, layers: range, *, embed: bool, head: bool
) -> tuple[tuple[str, str], ...]:
    """(kind, name) of all that a stage reads; a tied table that serves both ends comes once."""
    names = [pair for layer in layers for pair in layer_names(source.config, layer)]
    tied = not source.has("lm_head.weight")
    if embed and not (head and tied):
        names.append(("tensor", EMBEDDING))
    if head:
        names += [("tensor", FINAL_NORM), ("linear", LM_HEAD)]
    return tuple(names)


def stage_nbytes(source: WeightSource, layers: range, *, embed: bool, head: bool) -> int:
    """Bytes of a stage's weights as stored in the source."""
    return sum(
        source.nbytes(name) for _, name in stage_names(source, layers, embed=embed, head=head)
    )
