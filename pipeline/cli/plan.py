"""`lamella plan`: which layers go where and what they weigh, from the headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.cli.grouping import command
from pipeline.cli.options import (
    ModelOptions,
    ModeOptions,
    OutputOptions,
    PrecisionOptions,
    SplitOptions,
)
from pipeline.cli.sizes import nbytes_text

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.cli.stage_plan import StagePlan


@command
def plan(
    model: ModelOptions,
    split: SplitOptions,
    mode: ModeOptions,
    precision: PrecisionOptions,
    output: OutputOptions,
) -> None:
    """Show which layers each stage gets, and the bytes of its weights and KV cache.

    Reads the headers of the checkpoint; no weights are loaded, and the devices may be another
    machine's.
    """
    from model.checkpoint import Checkpoint
    from pipeline.cli.folders import checkpoint_folder
    from pipeline.cli.output import Output
    from pipeline.cli.placing import place
    from pipeline.cli.stage_plan import kv_layout, plan_stages, planned_kv_tokens

    to = Output(output)
    folder = checkpoint_folder(model.model)
    source = Checkpoint.open(folder)
    placement = place(source.config, split, mode.mode, here=False)
    stages = list(plan_stages(source, placement, precision))
    kv_dtype = kv_layout(source, precision).dtype
    kv_tokens = planned_kv_tokens(source.config, precision)
    if to.wants_json:
        to.document(
            {
                "plan": str(placement),
                "mode": str(placement.mode),
                "model": str(folder),
                "kv_dtype": kv_dtype,
                "kv_tokens": kv_tokens,
                "stages": [asdict(stage) for stage in stages],
            }
        )
        return
    to.out.print(str(placement), soft_wrap=True)
    to.out.print(as_table(stages, f"KV of {kv_tokens}"))
    to.out.print(f"mode {placement.mode}, KV cache {kv_dtype}", style="dim")


def as_table(stages: Sequence[StagePlan], kv_title: str) -> Table:
    """One row per stage, and the sum of several."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_footer=len(stages) > 1, pad_edge=False)
    for title in ("stage", "device", "layers", "ends"):
        table.add_column(title, "all" if title == "stage" else "")
    for title, values in (
        ("weights", [stage.weight_bytes for stage in stages]),
        ("KV per token", [stage.kv_bytes_per_token for stage in stages]),
        (kv_title, [stage.kv_bytes for stage in stages]),
    ):
        table.add_column(title, nbytes_text(sum(values)), justify="right")
    for stage in stages:
        ends = [name for name, has in (("embed", stage.embed), ("head", stage.head)) if has]
        table.add_row(
            str(stage.stage),
            stage.device,
            f"{stage.first_layer}-{stage.last_layer}",
            " ".join(ends),
            nbytes_text(stage.weight_bytes),
            nbytes_text(stage.kv_bytes_per_token),
            nbytes_text(stage.kv_bytes),
        )
    return table
