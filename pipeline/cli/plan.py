"""`lamella plan`: which layers go where, what they weigh and take, from the headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pipeline.cli.grouping import command
from pipeline.cli.options import (
    SPLIT,
    ModelOptions,
    ModeOptions,
    OutputOptions,
    PrecisionOptions,
    SplitOptions,
)
from pipeline.cli.sizes import nbytes_text, seconds_text
from pipeline.cli.values import count, flag

if TYPE_CHECKING:
    from rich.table import Table

    from model.config import LlamaConfig
    from pipeline.cli.stage_plan import PlacementPlan
    from pipeline.explanation import Explanation
    from pipeline.step_cost import DecodeStep


@dataclass(frozen=True)
class StepOptions:
    """The decode step whose time is predicted."""

    rows: Annotated[
        int,
        count(
            "--rows",
            help="Sequences of the decode step whose time is predicted, and for which layers are "
            "cut here. [dim]Default: 16, as loading does.[/]",
            show_default=False,
            rich_help_panel=SPLIT,
        ),
    ] = 16
    context: Annotated[
        int | None,
        count(
            "--context",
            help="Tokens in the cache of each of them. [dim]Default: 512, or the longest "
            "sequence.[/]",
            rich_help_panel=SPLIT,
        ),
    ] = None
    explain: Annotated[
        bool,
        flag(
            "--explain",
            help="Show what each mode is expected to take. Mode auto measures instead.",
            rich_help_panel=SPLIT,
        ),
    ] = False


@command
def plan(
    model: ModelOptions,
    split: SplitOptions,
    mode: ModeOptions,
    step: StepOptions,
    precision: PrecisionOptions,
    output: OutputOptions,
) -> None:
    """Show which layers each stage gets, its bytes, and how long a decode step takes it.

    Reads the headers of the checkpoint; no weights are loaded, and the devices may be another
    machine's. What does not fit is shown, and is no error: the exit code is 0.
    """
    from model.checkpoint import Checkpoint
    from pipeline.cli.folders import checkpoint_folder
    from pipeline.cli.output import Output
    from pipeline.cli.placing import place
    from pipeline.cli.stage_plan import check_max_seq_len, make_plan
    from pipeline.expectation import expected_modes
    from pipeline.step_cost import LoadOptions

    to = Output(output)
    folder = checkpoint_folder(model.model)
    source = Checkpoint.open(folder)
    check_max_seq_len(source.config, precision)
    load = LoadOptions(**asdict(precision))
    decode_step = step_of(step, precision, source.config)
    usual = step_of(StepOptions(), precision, source.config)
    placement = place(source, split, mode.mode, load, step=decode_step, here=False)
    made = make_plan(source, placement, load, decode_step)
    expected = None
    if step.explain:
        expected = expected_modes(source, placement, made.stage_profiles, load, decode_step)
    if to.wants_json:
        modes = {} if expected is None else {"expected": expected.json()}
        to.document({"model": str(folder), **as_json(made, decode_step), **modes})
        return
    to.out.print(str(placement), soft_wrap=True)
    to.out.print(as_table(made))
    for line, style in remarks(made, decode_step, usual if is_cut_by_weight(split) else None):
        to.out.print(line, style=style)
    if expected is not None:
        to.out.print(expectation_table(expected))


def step_of(options: StepOptions, precision: PrecisionOptions, config: LlamaConfig) -> DecodeStep:
    """The step that the options ask for; `typer.BadParameter` for more tokens than can be."""
    from pipeline.cli.errors import usage_error
    from pipeline.step_cost import DecodeStep

    longest = precision.max_seq_len or config.max_seq_len
    if options.context is None:
        return DecodeStep(options.rows, min(DecodeStep.context, longest))
    if options.context > longest:
        raise usage_error("--context", options.context, f"a sequence has at most {longest} tokens")
    return DecodeStep(options.rows, options.context)


def as_json(made: PlacementPlan, step: DecodeStep) -> dict[str, Any]:
    """The plan as the document of `--json`."""
    return {
        "plan": str(made.placement),
        "mode": str(made.placement.mode),
        "kv_dtype": made.kv_dtype,
        "kv_tokens": made.kv_tokens,
        "rows": step.rows,
        "context": step.context,
        "slowest_stage": made.slowest,
        "imbalance": made.imbalance,
        "fits": made.fits,
        "stages": [asdict(stage) for stage in made.stages],
        "devices": [
            {
                **asdict(device),
                "lacking_bytes": device.lacking_bytes,
                "bytes_per_second": profile.bandwidth,
                "basis": profile.basis,
            }
            for device, profile in zip(made.devices, made.profiles, strict=True)
        ],
    }


def as_table(made: PlacementPlan) -> Table:
    """One row per stage, and the bytes of several together."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    stages = made.stages
    table = Table(box=SIMPLE_HEAD, show_footer=len(stages) > 1, pad_edge=False)
    for title in ("stage", "device", "layers", "ends"):
        table.add_column(title, "all" if title == "stage" else "")
    for title, values in (
        ("weights", [stage.weight_bytes for stage in stages]),
        ("KV", [stage.kv_bytes for stage in stages]),
        ("workspace", [stage.workspace_bytes for stage in stages]),
    ):
        table.add_column(title, nbytes_text(sum(values)), justify="right")
    table.add_column("time", justify="right")
    for stage in stages:
        ends = [name for name, has in (("embed", stage.embed), ("head", stage.head)) if has]
        table.add_row(
            str(stage.stage),
            stage.device,
            f"{stage.first_layer}-{stage.last_layer}",
            " ".join(ends),
            nbytes_text(stage.weight_bytes),
            nbytes_text(stage.kv_bytes),
            nbytes_text(stage.workspace_bytes),
            seconds_text(stage.seconds),
        )
    return table


def expectation_table(expected: Explanation) -> Table:
    """One row per mode and number of groups; nothing is measured here."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    headings, rows = expected.table()
    shown = [place for place, heading in enumerate(headings) if not heading.startswith("measured")]
    for place in shown:
        inner = 0 < place < len(headings) - 1
        table.add_column(headings[place], justify="right" if inner else "left")
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    return table


def is_cut_by_weight(split: SplitOptions) -> bool:
    """Whether the layers are cut by weight and memory."""
    from pipeline.splits import split_rule

    return split.splits is None or split_rule(split.splits) == "auto"


def remarks(
    made: PlacementPlan, step: DecodeStep, usual: DecodeStep | None
) -> Iterator[tuple[str, str]]:
    """Lines below the table, with the style of each; what does not fit comes last, in red.

    `usual` is the step for which loading cuts; None if the layers of `made` were given.
    """
    per_token = sum(stage.kv_bytes_per_token for stage in made.stages)
    yield (
        f"mode {made.placement.mode}; KV cache {made.kv_dtype} of {made.kv_tokens} tokens, "
        f"{nbytes_text(per_token)} each",
        "dim",
    )
    yield f"times: a decode step of {step.rows} rows with {step.context} tokens each", "dim"
    if len(made.stages) > 1:
        if usual == step:
            yield "layers are cut for this step, as loading does", "dim"
        elif usual is not None:
            other = f"{usual.rows} rows with {usual.context} tokens each"
            yield f"layers are cut for this step; loading cuts for {other}", "dim"
        yield f"slowest: stage {made.slowest}; imbalance {made.imbalance:.0%}", "dim"
    for profile in made.profiles:
        speed = f"{profile.bandwidth / 1e9:.0f} GB/s"
        if profile.basis == "absent":
            yield f"{profile.name} is not here: times and memory guess an A100, {speed}", "yellow"
        elif profile.basis == "assumed":
            yield f"{profile.name} is of an unknown kind: times guess {speed}", "yellow"
        else:
            yield f"{profile.name}: {speed}, {profile.basis}", "dim"
    for device in made.devices:
        if device.memory_bytes is None:
            continue
        need, have = nbytes_text(device.needed_bytes), nbytes_text(device.memory_bytes)
        if not device.lacking_bytes:
            yield f"{device.device} needs {need} and has {have}", "dim"
            continue
        yield (
            f"does not fit: {device.device} needs {need} and has {have}; "
            f"{device.lacking_bytes} bytes are missing",
            "red",
        )
