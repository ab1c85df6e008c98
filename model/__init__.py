"""Llama-family models in stages: configuration, weights, layers, tokenizer and sampling.

Public names resolve when they are first used, so that `import model` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.bundled_model import bundled_model_path
    from model.checkpoint import Checkpoint
    from model.config import LlamaConfig
    from model.parity_weights import ParityWeights
    from model.rope import RopeTable
    from model.rope_scaling import RopeScaling
    from model.sampling import SamplingParams, sample
    from model.stage import DecodeRow, LlamaStage, StageSpec
    from model.stopping import StopCondition
    from model.tokenizer import TextStream, Tokenizer
    from model.weights import LinearWeights, WeightSource

_HOMES = {
    "Checkpoint": "checkpoint",
    "DecodeRow": "stage",
    "LinearWeights": "weights",
    "LlamaConfig": "config",
    "LlamaStage": "stage",
    "ParityWeights": "parity_weights",
    "RopeScaling": "rope_scaling",
    "RopeTable": "rope",
    "SamplingParams": "sampling",
    "StageSpec": "stage",
    "StopCondition": "stopping",
    "TextStream": "tokenizer",
    "Tokenizer": "tokenizer",
    "WeightSource": "weights",
    "bundled_model_path": "bundled_model",
    "sample": "sampling",
}

__all__ = [
    "Checkpoint",
    "DecodeRow",
    "LinearWeights",
    "LlamaConfig",
    "LlamaStage",
    "ParityWeights",
    "RopeScaling",
    "RopeTable",
    "SamplingParams",
    "StageSpec",
    "StopCondition",
    "TextStream",
    "Tokenizer",
    "WeightSource",
    "bundled_model_path",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
