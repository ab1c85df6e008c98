"""Two overlapped stages against the same stages in turn, and against what the arithmetic predicts.

One call with M microbatches over S stages takes, with t_i a stage's time for one microbatch, the
longest path through the grid of (stage, microbatch) cells. For two by two that is
t_0 + max(t_0, t_1) + t_1. The stage times are measured alone, at the microbatch's size, with the
same threads, so the prediction already holds what a microbatch costs in re-read weights; what is
left over is what the scheduler, the bridge and the shared memory bus lose. "All cores" is what
mode "batch" does by default: the stages in turn, each with every core.
Run as `python -m tests.bench.overlap`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.bench.checkpoints import SHAPES, random_checkpoint
from tests.bench.decode import timed
from tests.bench.environment import environment


class Decoder:
    """A batch of sequences that decodes one greedy token each per step."""

    def __init__(self, pipe: LlamaPipeline, batch: int, prompt: list[int]) -> None:
        self.pipe = pipe
        self.ids = [f"{id(self)}-{row}" for row in range(batch)]
        self.tokens = [int(pipe.prefill(seq_id, prompt).argmax()) for seq_id in self.ids]
        self.position = len(prompt)

    def step(self) -> None:
        batch = list(zip(self.ids, self.tokens, [self.position] * len(self.ids), strict=True))
        self.tokens = self.pipe.decode_greedy(batch).tolist()
        self.position += 1

    def stage_seconds(self) -> list[float]:
        """Each stage's time in the last step, the head counted with the last stage."""
        stats = self.pipe.cache_metrics_snapshot()["pipeline_decode"]
        seconds = [us / 1e6 for us in stats["stage_us_last"]]
        seconds[-1] += stats["logits_us_last"] / 1e6
        return seconds

    def close(self) -> None:
        for seq_id in self.ids:
            self.pipe.release(seq_id)


def longest_path(stage_seconds: list[float], microbatches: int) -> float:
    """Seconds of one overlapped call: stage i starts microbatch m after (i-1, m) and (i, m-1)."""
    done = [0.0] * len(stage_seconds)
    for _ in range(microbatches):
        previous = 0.0
        for index, seconds in enumerate(stage_seconds):
            previous = done[index] = max(done[index], previous) + seconds
    return done[-1]


def compare(
    batch_pipe: LlamaPipeline,
    all_cores: LlamaPipeline,
    overlap_pipe: LlamaPipeline,
    batch: int,
    rounds: int,
) -> dict[str, Any]:
    """One batch size: batch mode, overlapped mode, and stage times at the microbatch's size."""
    prompt = torch.randint(3, 30000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    stages = len(overlap_pipe.stages)
    micro = -(-batch // stages)
    sides = {
        "batch": Decoder(batch_pipe, batch, prompt),
        "all cores": Decoder(all_cores, batch, prompt),
        "overlapped": Decoder(overlap_pipe, batch, prompt),
        "micro": Decoder(batch_pipe, micro, prompt),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    micro_stages: list[list[float]] = []
    for _ in range(rounds):
        for name, side in sides.items():
            side.step()
            for _ in range(4):
                times[name].append(timed(side.step))
                if name == "micro":
                    micro_stages.append(side.stage_seconds())
    for side in sides.values():
        side.close()
    stage_seconds = [median(column) for column in zip(*micro_stages, strict=True)]
    in_turn, overlapped = median(times["batch"]), median(times["overlapped"])
    predicted = longest_path(stage_seconds, -(-batch // micro))
    return {
        "batch": batch,
        "microbatch_rows": micro,
        "batch_mode_step_ms": in_turn * 1e3,
        "all_cores_step_ms": median(times["all cores"]) * 1e3,
        "overlapped_step_ms": overlapped * 1e3,
        "microbatch_stage_ms": [seconds * 1e3 for seconds in stage_seconds],
        "predicted_overlapped_ms": predicted * 1e3,
        "speedup": in_turn / overlapped,
        "predicted_speedup": in_turn / predicted,
        "share_of_prediction": predicted / overlapped,
    }


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="1b")
    parser.add_argument(
        "--splits",
        default="10,6",
        help="layers of each stage; the last one has the head to do, too",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="per stage")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks/checkpoints"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = random_checkpoint(args.model, args.cache)
    report: dict[str, Any] = {
        "benchmark": "overlap",
        "environment": environment(args.threads),
        "model": args.model,
        "splits": args.splits,
        "rows": [],
    }
    common: dict[str, Any] = {"threads": args.threads, "max_seq_len": 256, "kv_tokens": 65536}
    with LlamaPipeline.from_pretrained(
        folder, splits=args.splits, mode="batch", **common
    ) as batch_pipe:
        overlapped = Placement(batch_pipe.placement.stages, mode="overlapped")
        stages = batch_pipe.stages
        with (
            LlamaPipeline(stages, batch_pipe.placement) as all_cores,
            LlamaPipeline(stages, overlapped, threads=args.threads) as overlap_pipe,
        ):
            for batch in args.batches:
                row = compare(batch_pipe, all_cores, overlap_pipe, batch, args.rounds)
                report["rows"].append(row)
                print(
                    f"batch {batch:3d}: in turn {row['batch_mode_step_ms']:.0f} ms, overlapped "
                    f"{row['overlapped_step_ms']:.0f} ms, {row['speedup']:.2f}x "
                    f"(predicted {row['predicted_speedup']:.2f}x, "
                    f"reached {row['share_of_prediction']:.2f} of it)",
                    flush=True,
                )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
