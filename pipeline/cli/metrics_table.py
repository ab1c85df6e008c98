"""The metrics of a run as a table of 80 columns: where the time of prefill and decode went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.cli.sizes import nbytes_text, plural, seconds_text

Row = tuple[str, str, str, str]
"""What, its total, the same per decode call, and a remark."""


def metrics_table(metrics: dict[str, Any]) -> Table:
    """A table of `GenerationResult.metrics`."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("total", justify="right", no_wrap=True)
    table.add_column("per call", justify="right", no_wrap=True)
    table.add_column("")
    for row in metric_rows(metrics):
        table.add_row(*row)
    return table


def metric_rows(metrics: dict[str, Any]) -> Iterator[Row]:
    """Prefill, decode calls, then what decode calls are made of."""
    prefill, decode = metrics["prefill"], metrics["decode"]
    calls = metrics["snapshot"]["pipeline_decode"]
    yield "prefill", seconds_text(prefill["seconds"]), "", speed(prefill)
    if not calls["calls"]:
        yield "decode", "", "", "no calls: every completion ended with its first token"
        return
    yield "decode", *_times(decode["seconds"], calls["calls"]), speed(decode)
    yield "calls", str(calls["calls"]), "", call_shapes(calls)
    if len(calls["stage_us_total"]) > 1:
        yield cycle_row(metrics["snapshot"]["pipeline_mode"])
    yield from stage_rows(calls)
    if len(calls["stage_us_total"]) > 1:
        yield from boundary_rows(calls)


def call_shapes(decode: dict[str, Any]) -> str:
    """Rows of the calls, and how many were cut; `decode` is `pipeline_decode` of the metrics."""
    shapes = f"{decode['rows'] / decode['calls']:.1f} rows each"
    cut, pieces = decode["overlapped_calls"], decode["microbatch_count_max"]
    if not cut:
        return shapes
    how = f"in {plural(pieces, 'microbatch', 'es')}" if pieces > 1 else "beside other groups"
    return f"{shapes}, {cut} {how}"


def cycle_row(mode: dict[str, Any]) -> Row:
    """How most tokens were made: a step of every sequence, measured and predicted."""
    mode = mode["most"]
    measured, predicted = mode["measured_cycle_us"], mode["predicted_cycle_us"]
    groups = f" in {plural(mode['groups'], 'group')}" if mode["groups"] > 1 else ""
    return (
        "cycle",
        "",
        "" if measured is None else seconds_text(measured / 1e6),
        f"mostly {mode['mode']}{groups}"
        + ("" if predicted is None else f"; predicted {seconds_text(predicted / 1e6)}"),
    )


def stage_rows(decode: dict[str, Any]) -> Iterator[Row]:
    """Each stage and the head."""
    calls, wall = decode["calls"], decode["total_us_total"]
    busy = decode["measured"]["busy_us_total"]
    for stage, micros in enumerate(decode["stage_us_total"]):
        yield f"stage {stage}", *_times(micros / 1e6, calls), f"busy {busy[stage] / wall:.0%}"
    yield "head", *_times(decode["logits_us_total"] / 1e6, calls), "final norm, logits"


def boundary_rows(decode: dict[str, Any]) -> Iterator[Row]:
    """The bridge, and how much the stages on its sides worked at once."""
    calls, measured = decode["calls"], decode["measured"]
    sent = decode["host_bridge_bytes_total"]
    yield (
        "bridge",
        *_times(decode["bridge_us_total"] / 1e6, calls),
        f"{nbytes_text(sent)}, {nbytes_text(sent / calls)} a call",
    )
    yield (
        "overlap",
        f"{measured['all_busy_share']:.0%}",
        "",
        f"all stages at work at once; bubbles {measured['bubble_share']:.0%}",
    )


def speed(rate: dict[str, Any]) -> str:
    """Tokens and tokens per second."""
    per_second = rate["tokens_per_s"] or 0
    return f"{plural(rate['tokens'], 'token')}, {per_second:.0f}/s"


def _times(seconds: float, calls: int) -> tuple[str, str]:
    return seconds_text(seconds), seconds_text(seconds / calls)
