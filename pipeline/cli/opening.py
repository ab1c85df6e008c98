"""A pipeline as the options ask for it, loaded with a progress bar and closed at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint
from model.weights import stage_nbytes
from pipeline.bridges.opening import check_bridge
from pipeline.cli.errors import blaming
from pipeline.cli.folders import checkpoint_folder
from pipeline.cli.interrupts import raising_interrupts
from pipeline.cli.output import Output
from pipeline.cli.overriding import overriding, resolved_impl
from pipeline.cli.placing import place
from pipeline.cli.progress import loading
from pipeline.cli.ranks import joint_options, telling_the_others, world_here
from pipeline.cli.request import ALONE, Request, load_options
from pipeline.cli.sizes import seconds_text
from pipeline.cli.stage_plan import check_max_seq_len
from pipeline.devices import resolve_devices
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.loading import stage_specs
from pipeline.placement import Placement
from pipeline.step_cost import LoadOptions


@contextmanager
def open_pipeline(request: Request, to: Output) -> Iterator[LlamaPipeline]:
    """Check the options, load, say where the layers went, and close whatever happens.

    Raises:
        typer.BadParameter: an option does not fit the model; before anything is loaded.
        LamellaError: what the model and the pipeline raise.
    """
    world = world_here() if request.compute.bridge != ALONE else None
    start: Callable[[], LlamaPipeline]
    with telling_the_others() if world is not None else nullcontext():
        folder = checkpoint_folder(request.model.model)
        source = Checkpoint.open(folder)
        check_max_seq_len(source.config, request.precision)
        load = LoadOptions(resolved_impl(request.compute), **asdict(request.precision))
        if world is not None:
            start = partial(_join, folder, joint_options(request, world), to)
        else:
            placement = place(source, request.split, request.mode.mode, load)
            devices = resolve_devices(placement.stage_device_ordinals, load.impl)
            with blaming("--bridge", request.compute.bridge):
                check_bridge(request.compute.bridge, devices, request.compute.bridge_dtype)
            start = partial(_load, folder, source, placement, request, to)
    with overriding(request.compute), raising_interrupts(), start() as pipeline:
        to.remark(describe(pipeline))
        yield pipeline


def _load(
    folder: Path, source: Checkpoint, placement: Placement, request: Request, to: Output
) -> LlamaPipeline:
    with loading(to, stored_bytes(source, placement)) as progress:
        return LlamaPipeline.from_pretrained(
            folder,
            **load_options(request),
            splits=[stage.layers for stage in placement.stages],
            devices=placement.stage_device_ordinals,
            mode=placement.mode,
            progress=progress,
        )


def _join(folder: Path, options: dict[str, Any], to: Output) -> LlamaPipeline:
    """The pipeline of rank 0, once all ranks have loaded their stages."""
    start = time.perf_counter()
    pipeline = LlamaPipeline.from_pretrained(folder, **options)
    to.remark(
        f"{len(pipeline.stages)} processes are ready after "
        f"{seconds_text(time.perf_counter() - start)}"
    )
    return pipeline


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
