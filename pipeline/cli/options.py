"""Options that commands share, in groups; a command takes a whole group as one parameter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kernels.own import is_own
from pipeline.cli.errors import usage_error
from pipeline.cli.values import choice, count, flag, text

MODEL, SPLIT, COMPUTE, CACHE, OUTPUT = (
    "Model",
    "Stages",
    "Computing",
    "KV cache",
    "Output",
)


@dataclass(frozen=True)
class OutputOptions:
    """Who reads the results, and what they want to see of errors."""

    json: Annotated[
        bool,
        flag(
            "--json",
            help="One JSON document on standard output and nothing else there.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    traceback: Annotated[
        bool,
        flag(
            "--traceback",
            help="Show the traceback of an error above its line.",
            rich_help_panel=OUTPUT,
        ),
    ] = False


@dataclass(frozen=True)
class ProgressOptions:
    """How much a command tells while it runs."""

    quiet: Annotated[
        bool,
        flag(
            "--quiet",
            "-q",
            help="Results and errors only: no progress, no remarks.",
            rich_help_panel=OUTPUT,
        ),
    ] = False


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint."""

    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FOLDER",
            help="Checkpoint in Hugging Face format: config.json, safetensors, tokenizer.json. "
            "[dim]Default: the bundled model.[/]",
            rich_help_panel=MODEL,
        ),
    ] = None


@dataclass(frozen=True)
class SplitOptions:
    """Which layers go to which device."""

    stages: Annotated[
        int | None,
        count(
            "--stages",
            "-s",
            help="Number of stages. [dim]Default: as many as --splits or --devices name.[/]",
            rich_help_panel=SPLIT,
        ),
    ] = None
    splits: Annotated[
        str | None,
        typer.Option(
            "--splits",
            metavar="LIST",
            help="Layers of each stage, as counts such as 3,1 or as ranges such as 0-2,3-3; auto, "
            "by weight and memory; or even. [dim]Default: auto.[/]",
            rich_help_panel=SPLIT,
        ),
    ] = None
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="LIST",
            help="Device of each stage, such as cuda:0,cuda:1 or cpu; one name serves all stages.",
            rich_help_panel=SPLIT,
        ),
    ] = None


@dataclass(frozen=True)
class ModeOptions:
    """How decode calls run through the stages."""

    mode: Annotated[
        str,
        choice(
            "--mode",
            among=("auto", "batch", "overlapped", "continuous"),
            help="batch: stages take turns. overlapped: they work at once, on parts of a batch of "
            "16 or more. continuous: groups of sequences, each with a step of its own under way. "
            "auto: the fastest, by measurement. [dim]Default: auto.[/]",
            show_default=False,
            rich_help_panel=SPLIT,
        ),
    ] = "auto"


@dataclass(frozen=True)
class RunModeOptions(ModeOptions):
    """The same for commands that run them."""

    groups: Annotated[
        int | None,
        count(
            "--groups",
            help="Groups of --mode continuous. [dim]Default: as many as stages.[/]",
            rich_help_panel=SPLIT,
        ),
    ] = None

    def check(self) -> None:
        """Raise `typer.BadParameter` for an option that the mode does not have."""
        if self.groups is not None and self.mode != "continuous":
            raise usage_error("--groups", self.groups, f"needs --mode continuous, not {self.mode}")


@dataclass(frozen=True)
class PrecisionOptions:
    """Number formats and sizes; they decide how many bytes weights and cache take."""

    dtype: Annotated[
        str,
        choice(
            "--dtype",
            among=("auto", "fp32", "fp16", "bf16"),
            metavar="DTYPE",
            help="Weights: fp32, fp16, bf16, or auto for the checkpoint's. [dim]Default: auto.[/]",
            show_default=False,
            rich_help_panel=COMPUTE,
        ),
    ] = "auto"
    kv_dtype: Annotated[
        str,
        choice(
            "--kv-dtype",
            among=("auto", "fp32", "fp16", "bf16", "int8"),
            metavar="DTYPE",
            help="Keys and values: fp32, fp16, bf16, int8, or auto for the checkpoint's. "
            "[dim]Default: auto.[/]",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = "auto"
    block_size: Annotated[
        int,
        count(
            "--block-size",
            help="Tokens per block. [dim]Default: 16.[/]",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = 16
    kv_tokens: Annotated[
        int | None,
        count(
            "--kv-tokens",
            help="Room in tokens, over all sequences. [dim]Default: 32 longest sequences, but at "
            "most 65536 tokens.[/]",
            rich_help_panel=CACHE,
        ),
    ] = None
    max_seq_len: Annotated[
        int | None,
        count(
            "--max-seq-len",
            help="Tokens of the longest sequence. [dim]Default: the model's positions.[/]",
            rich_help_panel=CACHE,
        ),
    ] = None


@dataclass(frozen=True)
class ComputeOptions:
    """What computes, on how many threads, and how stages hand over."""

    impl: Annotated[
        str,
        choice(
            "--impl",
            among=("auto", "triton", "cpu", "reference"),
            others=is_own,
            help="Operators: triton, cpu, reference, or auto for the device's own. Also your own, "
            "as module:function, for the operator that it has the name of. [dim]Default: auto.[/]",
            show_default=False,
            rich_help_panel=COMPUTE,
        ),
    ] = "auto"
    override: Annotated[
        list[str] | None,
        text(
            "--override",
            metavar="OP=IMPL",
            help="Your own operator for the whole run, such as attention=module:function or "
            "attention=file.py:function. Several times for several.",
            rich_help_panel=COMPUTE,
        ),
    ] = None
    bridge: Annotated[
        str,
        choice(
            "--bridge",
            among=("auto", "host", "cuda_peer", "cuda_device_staged", "distributed"),
            help="How hidden states go from stage to stage: host; between GPUs cuda_peer, or "
            "cuda_device_staged where they have no access to each other; distributed between "
            "processes of torchrun; or auto for the best there is. [dim]Default: auto.[/]",
            show_default=False,
            rich_help_panel=COMPUTE,
        ),
    ] = "auto"
    bridge_dtype: Annotated[
        str,
        choice(
            "--bridge-dtype",
            among=("fp32", "bf16"),
            metavar="DTYPE",
            help="Hidden states on their way: fp32, or bf16 with half the bytes, which changes "
            "results a little. [dim]Default: fp32.[/]",
            show_default=False,
            rich_help_panel=COMPUTE,
        ),
    ] = "fp32"
    threads: Annotated[
        int | None,
        count(
            "--threads",
            "-t",
            help="Threads of each stage. [dim]Default: the usable cores, shared by stages that "
            "work at once, and by processes of torchrun, whose own OMP_NUM_THREADS=1 is no "
            "limit.[/]",
            rich_help_panel=COMPUTE,
        ),
    ] = None
    cuda_graphs: Annotated[
        bool,
        flag(
            "--cuda-graphs/--no-cuda-graphs",
            help="Whether triton's decode steps on CUDA are captured once and run again. "
            "[dim]Default: --cuda-graphs.[/]",
            show_default=False,
            rich_help_panel=COMPUTE,
        ),
    ] = True
