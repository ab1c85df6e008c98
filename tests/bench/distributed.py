"""Stages in processes of torchrun against stages in threads of one process: tokens per second.

Both have the same stages, threads and mode, and take turns in fresh processes. The rate is that of
decoding in full swing, from the distance of steps.
Run as `python -m tests.bench.distributed`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.checkpoints import SHAPES, random_checkpoint
from tests.bench.environment import environment

STAGES = 2


def measure(args: argparse.Namespace) -> None:
    """In a process of either kind: print the rates, or run a stage."""
    from pipeline.distributed import World, serve
    from pipeline.llama_pipeline import LlamaPipeline
    from tests.bench.cycles import steady_cycle

    length = args.prompt + args.steps + 1
    options: dict[str, Any] = {
        "stages": STAGES,
        "mode": args.mode,
        "groups": args.groups,
        "threads": args.threads,
        "max_seq_len": length,
        "kv_tokens": (length + 16) * max(args.batches),
    }
    world = World.of_environment()
    if world is not None and not world.drives:
        serve(args.folder, **options)
        return

    rates = {}
    with LlamaPipeline.from_pretrained(args.folder, **options) as pipe:
        for rows in [args.batches[0], *args.batches]:  # the first is to warm up
            start = time.perf_counter_ns()
            pipe.generate(
                [list(range(3, 3 + args.prompt))] * rows,
                max_new_tokens=args.steps + 1,
                stop_token_ids=(),
                max_batch=rows,
            )
            jobs = args.groups if args.mode == "continuous" else 1
            rates[rows] = rows / steady_cycle(pipe, jobs, start)
    print("rates " + json.dumps(rates), flush=True)


def rates_of(command: list[str]) -> dict[str, float]:
    """Tokens per second by batch, as one start of the processes measured them."""
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    line = next(line for line in done.stdout.splitlines() if line.startswith("rates "))
    return json.loads(line.removeprefix("rates "))


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["bundled", *SHAPES], default="1b")
    parser.add_argument("--mode", choices=["batch", "continuous"], default="continuous")
    parser.add_argument("--groups", type=int, default=STAGES)
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--steps", type=int, default=24, help="decode steps of a run")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of every prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="per stage")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks/checkpoints"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return
    own = ["tests.bench.distributed", "--measure", *sys.argv[1:]]
    if args.model != "bundled":
        own += ["--folder", str(random_checkpoint(args.model, args.cache))]
    kinds = {
        "threads": [sys.executable, "-m", *own],
        "processes": [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(STAGES), "-m", *own,
        ],
    }  # fmt: skip
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, command in kinds.items():
            rounds[name].append(rates_of(command))
    report: dict[str, Any] = {
        "benchmark": "distributed",
        "environment": environment(args.threads),
        "model": args.model,
        "mode": args.mode,
        "steps": args.steps,
        "rows": [],
    }
    for rows in map(str, args.batches):
        rates = {name: median(one[rows] for one in many) for name, many in rounds.items()}
        ratio = rates["processes"] / rates["threads"]
        report["rows"].append({"batch": int(rows), "tokens_per_s": rates, "ratio": ratio})
        print(
            f"batch {rows}: threads {rates['threads']:.1f}/s, "
            f"processes {rates['processes']:.1f}/s, ratio {ratio:.3f}",
            flush=True,
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
