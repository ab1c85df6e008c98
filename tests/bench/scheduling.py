"""What the scheduler alone reaches of the bound C(G), on stages that sleep instead of computing.

With G groups in flight a step of every sequence takes no less than
C(G) = max(G * max t_i, sum (t_i + h_i)), with t_i a stage's time for one group and h_i a hop's.
Stages sleep w + c * rows for a job, hops deliver h later without keeping anyone busy, so all that
is lost is the driver's, the workers' and the links'. The last part compares with mode "overlapped"
at X / w = 1.4, X being the time of all rows: what groups gain that do not wait for each other.
Run as `python -m tests.bench.scheduling`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.bridges.link import Envelope
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.bench.cycles import steady_cycle
from tests.bench.environment import environment
from tests.pipeline.fake_stage import FakeStage, fake_stages


def sleeping_stages(times: list[tuple[float, float]]) -> list[FakeStage]:
    """Stages that sleep w + c * rows seconds for a job; the head is part of the last one's."""
    stages = fake_stages([1] * len(times), num_blocks=1 << 14)
    for stage, (w, c) in zip(stages, times, strict=True):
        stage.seconds = lambda rows, w=w, c=c: w + c * rows  # type: ignore[misc]
    head = stages[-1]
    vocab = head.config.vocab_size

    def greedy(hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0].long() % vocab

    head.greedy = greedy  # type: ignore[method-assign]
    return stages


class SlowHop:
    """Delivers what goes over a link `seconds` after it was handed over."""

    def __init__(self, link: Any, seconds: float) -> None:
        self._hand_over, self._wait, self._seconds = link.hand_over, link.wait, seconds
        self._sent: list[float] = []
        link.hand_over, link.wait = self.hand_over, self.wait

    def hand_over(self, slot: int, rows: int) -> None:
        self._sent.append(time.perf_counter())
        self._hand_over(slot, rows)

    def wait(self) -> Envelope:
        envelope: Envelope = self._wait()
        left = self._sent.pop(0) + self._seconds - time.perf_counter()
        if left > 0:
            time.sleep(left)
        return envelope


def cycle(
    mode: str,
    times: list[tuple[float, float]],
    *,
    rows: int,
    groups: int | None = None,
    hop: float = 0.0,
    steps: int = 30,
) -> float:
    """Seconds of a step of all `rows` sequences."""
    placement = Placement.even(len(times), len(times), mode=mode)
    with LlamaPipeline(sleeping_stages(times), placement, threads=1, groups=groups) as pipe:
        if hop:
            for loop in pipe.engine.line._loops[:-1]:  # type: ignore[attr-defined]
                SlowHop(loop.link_out, hop)
        start = time.perf_counter_ns()
        pipe.generate([[1]] * rows, max_new_tokens=steps + 1, stop_token_ids=(), max_batch=rows)
        return steady_cycle(pipe, groups or len(times), start)


def bound(times: list[tuple[float, float]], rows: int, groups: int, hop: float) -> float:
    """C(G) in seconds; `hop` at every boundary."""
    size = -(-rows // groups)
    stage = [w + c * size for w, c in times]
    return max(groups * max(stage), sum(stage) + hop * (len(times) - 1))


def efficiency(stages: int, kind: str, hop: float, groups: int, seconds: float) -> dict[str, Any]:
    """One cell: measured cycle against C(G), with 4 rows a group."""
    rows = 4 * groups
    share = [1.0] * stages if kind == "equal" else [1.0 - 0.4 * (i % 2) for i in range(stages)]
    times = [(seconds * part, 0.0) for part in share]
    measured = cycle("continuous", times, rows=rows, groups=groups, hop=hop)
    least = bound(times, rows, groups, hop)
    return {
        "stages": stages,
        "times": kind,
        "hop_ms": hop * 1e3,
        "groups": groups,
        "stage_ms": seconds * 1e3,
        "cycle_ms": measured * 1e3,
        "bound_ms": least * 1e3,
        "share_of_bound": least / measured,
    }


def against_overlapped(seconds: float) -> dict[str, Any]:
    """S = 2, X / w = 1.4: continuous against overlapped, 32 rows."""
    rows = 32
    times = [(seconds, 1.4 * seconds / rows)] * 2
    overlapped = cycle("overlapped", times, rows=rows)
    continuous = cycle("continuous", times, rows=rows, groups=2)
    return {
        "rows": rows,
        "overlapped_cycle_ms": overlapped * 1e3,
        "continuous_cycle_ms": continuous * 1e3,
        "gain": overlapped / continuous,
    }


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--seconds", type=float, default=0.05, help="a stage's time for a job")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "scheduling",
        "environment": environment(1),
        "cells": [],
    }
    for stages in args.stages:
        for kind in ("equal", "unequal"):
            # Slow hops want a group more: one is on its way while the others keep stages busy.
            for hop, groups in (
                (0.0, stages),
                (args.seconds / 2, stages),
                (0.25 * args.seconds, stages + 1),
            ):
                cell = efficiency(stages, kind, hop, groups, args.seconds)
                report["cells"].append(cell)
                print(
                    f"S={stages} {kind:8} hop {hop * 1e3:4.1f} ms G={groups}: cycle "
                    f"{cell['cycle_ms']:6.1f} ms, bound {cell['bound_ms']:6.1f}, "
                    f"{cell['share_of_bound']:.3f} of it",
                    flush=True,
                )
    report["against_overlapped"] = found = against_overlapped(args.seconds)
    print(f"S=2 X/w=1.4: continuous {found['gain']:.2f}x of overlapped")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
