"""Targets: each judged on the right case, and never without a figure."""

from __future__ import annotations

from typing import Any

import pytest

from kernels import get_op
from tests.bench.step import measure_transformers
from tests.bench.targets import table, targets

FP16 = "decode-B32-4k-32x8x128-block16-kv_fp16-fp16"
INT8 = "decode-B32-4k-32x8x128-block16-kv_int8-fp16"


def row(case: str, impl: str, us: float, op: str = "attention", **more: Any) -> dict[str, Any]:
    row = {"op": op, "case": case, "impl": impl, "peer": impl != "triton", "median_us": us}
    return {**row, "fraction_of_copy": 0.8, "tflop_per_s": 500.0, **more}


def step(impl: str, us: float, **more: Any) -> dict[str, Any]:
    return {"shape": "llama-3.1-8b", "batch": 1, "impl": impl, "median_us": us, **more}


def test_without_figures_nothing_is_met() -> None:
    rows = targets([], [])
    assert {row["verdict"] for row in rows} == {"not measured"}
    assert len(table(rows).splitlines()) == len(rows)


def test_cases_are_in_the_registry() -> None:
    known = {case.name for op in ("attention", "decode_mlp") for case in get_op(op).cases}
    assert {row["case"] for row in targets([], [])} - known == {"llama-3.1-8b-B1"}


@pytest.mark.parametrize(
    ("target", "figures", "steps", "measured", "verdict"),
    [
        ("attention, fp16 cache: of", [row(FP16, "triton", 9, fraction_of_copy=0.91)], [], 0.91, 1),
        ("attention, int8 cache: of", [row(INT8, "triton", 9, fraction_of_copy=0.84)], [], 0.84, 0),
        ("over our fp16", [row(FP16, "triton", 18), row(INT8, "triton", 10)], [], 1.8, 1),
        ("over our fp16", [row(FP16, "triton", 16), row(INT8, "triton", 10)], [], 1.6, 0),
        (
            "best peer's",
            [row(FP16, "flex", 30), row(FP16, "sdpa", 9), row(INT8, "triton", 10)],
            [],
            0.9,
            0,
        ),
        ("best peer's", [row(FP16, "sdpa", 10), row(INT8, "triton", 10)], [], 1.0, 0),
        (
            "batch 1",
            [row("decode-B1-16k-32x8x128-block16-kv_fp16-fp16", "triton", 20.0)],
            [],
            20.0,
            0,
        ),
        ("prefill", [row("prefill-16k-32x8x128-block16-kv_bf16-bf16", "triton", 9)], [], 500.0, 1),
        ("decode_mlp", [row("B1-H4096-I14336-bf16", "triton", 9, "decode_mlp")], [], 0.8, 0),
        ("bytes' bound", [], [step("lamella", 9, fraction_of_bound=0.75)], 0.75, 1),
        ("over transformers", [], [step("lamella", 9), step("transformers", 18)], 2.0, 1),
        ("over transformers", [], [step("lamella", 9), step("transformers", 9)], 1.0, 0),
    ],
)
def test_judged(
    target: str, figures: list[dict], steps: list[dict], measured: float, verdict: bool
) -> None:
    found = [r for r in targets(figures, steps) if target in r["target"] and r["measured"]]
    assert [r["measured"] for r in found] == [pytest.approx(measured)]
    assert found[0]["verdict"] == ("met" if verdict else "not met")


def test_a_later_figure_counts() -> None:
    rows = targets([row(FP16, "triton", 9), row(FP16, "triton", 8, fraction_of_copy=0.95)], [])
    assert rows[0]["measured"] == 0.95


def test_transformers_are_timed() -> None:
    found = measure_transformers("tiny", "cpu", 1, 16, 8, compiled=False)
    assert (found["impl"], found["shape"], found["batch"]) == ("transformers", "tiny", 1)
    assert found["median_us"] > 0
