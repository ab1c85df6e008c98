"""Split Llama models: placement, hand-over of hidden states, schedules, workers, generation.

Public names resolve on first use, so `import pipeline` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.errors import BridgeError as BridgeError
    from pipeline.errors import RankLostError as RankLostError
    from pipeline.errors import StageError as StageError
    from pipeline.generation import GenerationResult as GenerationResult
    from pipeline.hidden import PipelineHidden as PipelineHidden
    from pipeline.llama_pipeline import LlamaPipeline as LlamaPipeline
    from pipeline.modes import LlamaPipelineMode as LlamaPipelineMode
    from pipeline.modes import StageBridge as StageBridge
    from pipeline.modes import Transport as Transport
    from pipeline.parity import ParityReport as ParityReport
    from pipeline.perplexity import PerplexityResult as PerplexityResult
    from pipeline.placement import Placement as Placement
    from pipeline.placement import StagePlacement as StagePlacement
    from pipeline.sequences import Completion as Completion
    from pipeline.sequences import GenerationEvent as GenerationEvent

_HOME = {
    "BridgeError": "errors",
    "Completion": "sequences",
    "GenerationEvent": "sequences",
    "GenerationResult": "generation",
    "LlamaPipeline": "llama_pipeline",
    "LlamaPipelineMode": "modes",
    "ParityReport": "parity",
    "PerplexityResult": "perplexity",
    "PipelineHidden": "hidden",
    "Placement": "placement",
    "RankLostError": "errors",
    "StageBridge": "modes",
    "StageError": "errors",
    "StagePlacement": "placement",
    "Transport": "modes",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
