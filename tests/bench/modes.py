"""The pipeline's modes against each other, and against the bound that the stages' own times give.

With G groups in flight a step of every sequence takes no less than
C(G) = max(G * max t_i, sum t_i), where t_i is a stage's time for one group's rows, handing over
included. t_i is measured twice: alone, with the stages in turn and the same threads, and in the
run itself, where stages share the memory bus; the first gives the bound, the second what is the
scheduler's share of the loss. "all cores" is batch mode as it is by default: the stages in turn,
each with every core, which costs what the whole model does.
Run as `python -m tests.bench.modes`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.bench.checkpoints import SHAPES, random_checkpoint
from tests.bench.cycles import steady_cycle
from tests.bench.environment import environment


class Run(NamedTuple):
    """Seconds of a step of every sequence, in full swing and over the whole run, and of jobs."""

    cycle: float
    mean: float
    stages: list[float]


class Runner:
    """Generates with one pipeline and says what a step of every sequence took."""

    def __init__(self, pipe: LlamaPipeline, jobs: int, prompt: list[int], steps: int) -> None:
        self.pipe = pipe
        self.jobs = jobs  # of a step of every sequence
        self._prompt = prompt
        self._steps = steps

    def run(self, rows: int) -> Run:
        """Generate for `rows` sequences."""
        before, start = self._stats(), time.perf_counter_ns()
        result = self.pipe.generate(
            [self._prompt] * rows,
            max_new_tokens=self._steps + 1,
            stop_token_ids=(),
            max_batch=rows,
        )
        after = self._stats()
        jobs = after["calls"] - before["calls"]
        busy = zip(
            after["measured"]["busy_us_total"], before["measured"]["busy_us_total"], strict=True
        )
        mean = rows / result.metrics["decode"]["tokens_per_s"]
        changes = self.pipe.placement.mode == "auto"  # its mind, while it runs
        return Run(
            mean if changes else steady_cycle(self.pipe, self.jobs, start),
            mean,
            [(new - old) / jobs / 1e6 for new, old in busy],
        )

    def _stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.pipe.cache_metrics_snapshot()["pipeline_decode"]
        return stats


def bound(stage_seconds: list[float], groups: int) -> float:
    """C(G), hand-overs being part of the stages' times."""
    return max(groups * max(stage_seconds), sum(stage_seconds))


def compare(runners: dict[str, Runner], rows: int, rounds: int) -> dict[str, Any]:
    """One batch size in every mode, taking turns; auto's first run is told apart."""
    cold = runners["auto"].run(rows).mean
    runners["auto"].run(rows)
    cycles: dict[str, list[float]] = {name: [] for name in runners}
    means: dict[str, list[float]] = {name: [] for name in runners}
    inside: dict[str, list[list[float]]] = {name: [] for name in runners}
    alone: dict[int, list[list[float]]] = {}
    groups_of = {name: int(name.split()[1]) for name in runners if name.startswith("continuous")}
    for _ in range(rounds):
        for name, runner in runners.items():
            run = runner.run(rows)
            cycles[name].append(run.cycle)
            means[name].append(run.mean)
            inside[name].append(run.stages)
        for groups in groups_of.values():
            alone.setdefault(groups, []).append(runners["batch"].run(-(-rows // groups)).stages)
    medians = {name: median(values) for name, values in cycles.items()}
    row: dict[str, Any] = {
        "batch": rows,
        "cycle_ms": {name: seconds * 1e3 for name, seconds in medians.items()},
        "bounds": {},
    }
    for name, groups in groups_of.items():
        times_alone = [median(column) for column in zip(*alone[groups], strict=True)]
        times_inside = [median(column) for column in zip(*inside[name], strict=True)]
        row["bounds"][name] = {
            "stage_alone_ms": [seconds * 1e3 for seconds in times_alone],
            "stage_inside_ms": [seconds * 1e3 for seconds in times_inside],
            "share_of_bound_alone": bound(times_alone, groups) / medians[name],
            "share_of_bound_inside": bound(times_inside, groups) / medians[name],
        }
    overall = {name: median(values) for name, values in means.items()}
    row["mean_step_ms"] = {name: seconds * 1e3 for name, seconds in overall.items()}
    auto = overall.pop("auto")
    row["best_fixed"] = min(overall, key=overall.__getitem__)
    row["auto_behind_best"] = auto / overall[row["best_fixed"]] - 1
    row["auto_cold_ms"] = cold * 1e3
    row["auto_cold_behind_best"] = cold / overall[row["best_fixed"]] - 1
    row["auto_ran"] = runners["auto"].pipe.cache_metrics_snapshot()["pipeline_mode"]
    return row


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    cycles = row["cycle_ms"]
    parts = [f"{name} {ms:.0f}" for name, ms in cycles.items()]
    text = f"batch {row['batch']:3d}: " + ", ".join(parts) + " ms"
    for name, found in row["bounds"].items():
        text += (
            f"; {name}: {cycles['batch'] / cycles[name]:.2f}x of batch, "
            f"{found['share_of_bound_alone']:.2f}/{found['share_of_bound_inside']:.2f} of C(G)"
        )
    warm, cold = row["auto_behind_best"], row["auto_cold_behind_best"]
    return f"{text}; auto {warm:+.1%} ({cold:+.1%} cold) behind {row['best_fixed']}"


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="1b")
    parser.add_argument("--splits", default="10,6", help="layers of each stage")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 64, 128])
    parser.add_argument(
        "--groups", nargs="+", type=int, default=[2, 3, 4], help="all that auto has, of two stages"
    )
    parser.add_argument("--steps", type=int, default=24, help="decode steps of a run")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of every prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="per stage, where they share cores")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks/checkpoints"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = random_checkpoint(args.model, args.cache)
    report: dict[str, Any] = {
        "benchmark": "modes",
        "environment": environment(args.threads),
        "model": args.model,
        "splits": args.splits,
        "prompt_tokens": args.prompt,
        "steps": args.steps,
        "rows": [],
    }
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, 30000, (args.prompt,), generator=generator).tolist()
    length = args.prompt + args.steps + 1
    with LlamaPipeline.from_pretrained(
        folder,
        splits=args.splits,
        mode="batch",
        threads=args.threads,
        max_seq_len=length,
        kv_tokens=(length + 16) * max(args.batches),
    ) as batch:
        pipes = {"batch": batch}
        placed = batch.placement.stages
        pipes["all cores"] = LlamaPipeline(batch.stages, batch.placement)
        pipes["overlapped"] = LlamaPipeline(
            batch.stages, Placement(placed, mode="overlapped"), threads=args.threads
        )
        for groups in args.groups:
            pipes[f"continuous {groups}"] = LlamaPipeline(
                batch.stages,
                Placement(placed, mode="continuous"),
                threads=args.threads,
                groups=groups,
            )
        pipes["auto"] = LlamaPipeline(batch.stages, Placement(placed, mode="auto"))
        jobs = {"overlapped": len(placed)} | {
            f"continuous {groups}": groups for groups in args.groups
        }
        runners = {
            name: Runner(pipe, jobs.get(name, 1), prompt, args.steps)
            for name, pipe in pipes.items()
        }
        for name, runner in runners.items():
            if name != "auto":  # which shows what it does cold
                runner.run(min(args.batches))
        for rows in args.batches:
            row = compare(runners, rows, args.rounds)
            report["rows"].append(row)
            print(line(row), flush=True)
        for pipe in pipes.values():
            pipe.close()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
