"""A pipeline as the options ask for it, loaded with a progress bar and closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from model.checkpoint import Checkpoint
from model.weights import stage_nbytes
from pipeline.bridges.opening import check_bridge
from pipeline.cli.errors import blaming
from pipeline.cli.folders import checkpoint_folder
from pipeline.cli.interrupts import raising_interrupts
from pipeline.cli.options import (
    ComputeOptions,
    ModelOptions,
    ModeOptions,
    PrecisionOptions,
    SplitOptions,
)
from pipeline.cli.output import Output
from pipeline.cli.overriding import overriding, resolved_impl
from pipeline.cli.placing import place
from pipeline.cli.progress import loading
from pipeline.cli.stage_plan import check_max_seq_len
from pipeline.devices import resolve_devices
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.loading import stage_specs
from pipeline.placement import Placement
from pipeline.step_cost import LoadOptions


@dataclass(frozen=True)
class Request:
    """All options that shape a pipeline."""

    model: ModelOptions
    split: SplitOptions
    mode: ModeOptions
    compute: ComputeOptions
    precision: PrecisionOptions


@contextmanager
def open_pipeline(request: Request, to: Output) -> Iterator[LlamaPipeline]:
    """Check the options, load, say where the layers went, and close whatever happens.

    Raises:
        typer.BadParameter: an option does not fit the model; before anything is loaded.
        LamellaError: what the model and the pipeline raise.
    """
    folder = checkpoint_folder(request.model.model)
    source = Checkpoint.open(folder)
    check_max_seq_len(source.config, request.precision)
    load = LoadOptions(resolved_impl(request.compute), **asdict(request.precision))
    placement = place(source, request.split, request.mode.mode, load)
    devices = resolve_devices(placement.stage_device_ordinals, resolved_impl(request.compute))
    with blaming("--bridge", request.compute.bridge):
        check_bridge(request.compute.bridge, devices)
    with (
        overriding(request.compute),
        raising_interrupts(),
        _load(folder, source, placement, request, to) as pipeline,
    ):
        to.remark(describe(pipeline))
        yield pipeline


def _load(
    folder: Path, source: Checkpoint, placement: Placement, request: Request, to: Output
) -> LlamaPipeline:
    compute, precision = request.compute, request.precision
    with loading(to, stored_bytes(source, placement)) as progress:
        return LlamaPipeline.from_pretrained(
            folder,
            splits=[stage.layers for stage in placement.stages],
            devices=placement.stage_device_ordinals,
            mode=placement.mode,
            groups=request.mode.groups,
            impl=resolved_impl(compute),
            bridge=compute.bridge,
            threads=compute.threads,
            dtype=precision.dtype,
            kv_dtype=precision.kv_dtype,
            block_size=precision.block_size,
            kv_tokens=precision.kv_tokens,
            max_seq_len=precision.max_seq_len,
            cuda_graphs=compute.cuda_graphs,
            progress=progress,
        )


def stored_bytes(source: Checkpoint, placement: Placement) -> int:
    """Bytes of the checkpoint that all stages of a placement read."""
    return sum(
        stage_nbytes(source, spec.layers, embed=spec.embed, head=spec.head)
        for spec in stage_specs(placement)
    )


def describe(pipeline: LlamaPipeline) -> str:
    """Where the layers are and what computes them, in one line."""
    first = pipeline.stages[0]
    threads = "/".join(str(count) for count in pipeline.threads)
    return (
        f"{pipeline.placement.describe(str(first.device))} "
        f"mode={pipeline.placement.mode} impl={first.impl} threads={threads}"
    )
