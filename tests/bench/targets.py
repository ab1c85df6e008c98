"""The figures that the kernels aim at on an H100 or H200, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_LARGE = ("decode-B32-4k", "decode-ragged-B32")  # 256 MB of KV and more
_MLP = tuple(f"B{batch}-H4096-I14336-bf16" for batch in (1, 4, 16))


def targets(results: Sequence[Row], steps: Sequence[Row]) -> list[dict[str, Any]]:
    """`{"target", "case", "wanted", "measured", "verdict"}` for each target and case.

    `results` are rows of `bench`, a later one in place of an earlier one of the same case;
    `steps` those of `tests.bench.step`. A verdict is "met", "not met" or "not measured".
    """
    figures = _Figures(results)
    rows: list[dict[str, Any]] = []

    def add(
        target: str, case: str, wanted: float, measured: float | None, low: bool = False
    ) -> None:
        verdict = "not measured"
        if measured is not None:
            met = measured < wanted if low else measured >= wanted
            verdict = "met" if met else "not met"
        row = {"target": target, "case": case, "wanted": wanted, "measured": measured}
        rows.append({**row, "verdict": verdict})

    for kind in _LARGE:
        fp16, int8 = _decode(kind, "fp16"), _decode(kind, "int8")
        ours = {kv: figures.ours("attention", kv, "median_us") for kv in (fp16, int8)}
        peer = figures.best_peer("attention", fp16)
        of_copy = "of the copy's bandwidth, at least"
        for kv, case, wanted in (("fp16", fp16, 0.9), ("int8", int8, 0.85)):
            share = figures.ours("attention", case, "fraction_of_copy")
            add(f"attention, {kv} cache: {of_copy}", case, wanted, share)
        gain = "attention, int8 cache: speed over"
        add(f"{gain} our fp16, at least", int8, 1.7, _over(ours[fp16], ours[int8]))
        # A tie is not faster.
        add(f"{gain} the best peer's fp16, above", int8, 1.0 + 1e-6, _over(peer, ours[int8]))
    for kv in ("fp16", "int8"):
        case = _decode("decode-B1-16k", kv)
        time = figures.ours("attention", case, "median_us")
        add(f"attention, {kv} cache, batch 1: us, under", case, 20.0, time, low=True)
    for dtype in ("bf16", "fp16"):
        case = f"prefill-16k-32x8x128-block16-kv_{dtype}-{dtype}"
        rate = figures.ours("attention", case, "tflop_per_s")
        add(f"attention, {dtype} prefill: TFLOP/s, at least", case, 450.0, rate)
    for case in _MLP:
        share = figures.ours("decode_mlp", case, "fraction_of_copy")
        add("decode_mlp: of the copy's bandwidth, at least", case, 0.85, share)

    step = next((row for row in steps if _is_step(row, "lamella")), {})
    other = next((row for row in steps if _is_step(row, "transformers")), {})
    case = "llama-3.1-8b-B1"
    add("step: of its bytes' bound, at least", case, 0.75, step.get("fraction_of_bound"))
    gain = "step: speed over transformers (static cache, torch.compile), above"
    add(gain, case, 1.0 + 1e-6, _over(other.get("median_us"), step.get("median_us")))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The targets as lines of text."""
    lines = []
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.2f}"
        lines.append(
            f"{row['verdict']:12}  {measured:>8} of {row['wanted']:<6.4g}  "
            f"{row['target']} ({row['case']})"
        )
    return "\n".join(lines)


class _Figures:
    def __init__(self, results: Sequence[Row]) -> None:
        self._rows = {(row["op"], row["case"], row["impl"]): row for row in results}

    def ours(self, op: str, case: str, what: str) -> float | None:
        row = self._rows.get((op, case, "triton"))
        return None if row is None else row[what]

    def best_peer(self, op: str, case: str) -> float | None:
        """The time of the fastest peer, in microseconds."""
        times = [
            row["median_us"]
            for (its_op, its_case, _), row in self._rows.items()
            if (its_op, its_case) == (op, case) and row["peer"]
        ]
        return min(times, default=None)


def _decode(kind: str, kv: str) -> str:
    """With float16 queries: figures of different queries are not compared."""
    return f"{kind}-32x8x128-block16-kv_{kv}-fp16"


def _is_step(row: Row, impl: str) -> bool:
    return (row["shape"], row["batch"], row["impl"]) == ("llama-3.1-8b", 1, impl)


def _over(slow: float | None, fast: float | None) -> float | None:
    return None if slow is None or fast is None else slow / fast
