"""Decode and prefill rates against transformers: same checkpoint, same threads, same process.

The two alternate in blocks of steps, so that a slow moment of a shared machine meets both; the
figure to read is the ratio. Run as `python -m tests.bench.decode`; `--out` records it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.llama_pipeline import LlamaPipeline
from tests.bench.checkpoints import SHAPES, random_checkpoint
from tests.bench.environment import environment

Step = Callable[[], None]


def timed(step: Step) -> float:
    """Seconds that one step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ours(pipe: LlamaPipeline, prompts: list[list[int]]) -> tuple[float, Step]:
    """Prefill seconds and a closure that decodes one token for every prompt."""
    pipe.reset()
    pipe.prefill("warm-up", prompts[0])
    pipe.release("warm-up")
    ids = [str(row) for row in range(len(prompts))]
    start = time.perf_counter()
    logits = torch.stack(
        [pipe.prefill(seq_id, prompt) for seq_id, prompt in zip(ids, prompts, strict=True)]
    )
    seconds = time.perf_counter() - start
    tokens = logits.argmax(-1).tolist()
    position = len(prompts[0])

    def step() -> None:
        nonlocal tokens, position
        batch = [(seq_id, token, position) for seq_id, token in zip(ids, tokens, strict=True)]
        tokens = pipe.decode_greedy(batch).tolist()
        position += 1

    return seconds, step


def theirs(model: Any, prompts: list[list[int]]) -> tuple[float, Step]:
    """The same for a transformers model."""
    inputs = torch.tensor(prompts)
    with torch.inference_mode():
        model(inputs[:1], use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        output = model(inputs, use_cache=True, logits_to_keep=1)
        seconds = time.perf_counter() - start
    cache, tokens = output.past_key_values, output.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def step() -> None:
        nonlocal cache, tokens
        output = model(tokens, past_key_values=cache, use_cache=True)
        cache, tokens = output.past_key_values, output.logits[:, -1:].argmax(-1)

    return seconds, step


def compare(
    pipe: LlamaPipeline, model: Any, batch: int, prompt_len: int, rounds: int, block: int
) -> dict[str, Any]:
    """One row of the table: both sides at one batch size."""
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(3, 30000, (batch, prompt_len), generator=generator).tolist()
    our_prefill, our_step = ours(pipe, prompts)
    their_prefill, their_step = theirs(model, prompts)
    our_times: list[float] = []
    their_times: list[float] = []
    for _ in range(rounds):
        for step, times in ((our_step, our_times), (their_step, their_times)):
            step()  # back into the caches after the other side's turn
            times.extend(timed(step) for _ in range(block))
    our_median, their_median = median(our_times), median(their_times)
    return {
        "batch": batch,
        "prompt_tokens": prompt_len,
        "steps": len(our_times),
        "decode_tokens_per_s": batch / our_median,
        "transformers_decode_tokens_per_s": batch / their_median,
        "decode_ratio": their_median / our_median,
        "step_ms": {"min": min(our_times) * 1e3, "median": our_median * 1e3},
        "transformers_step_ms": {"min": min(their_times) * 1e3, "median": their_median * 1e3},
        "prefill_tokens_per_s": batch * prompt_len / our_prefill,
        "transformers_prefill_tokens_per_s": batch * prompt_len / their_prefill,
        "prefill_ratio": their_prefill / our_prefill,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All sizes and batches."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"benchmark": "decode", "environment": environment(args.threads)}
    rows: list[dict[str, Any]] = []
    for name in args.models:
        folder = random_checkpoint(name, args.cache)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        with LlamaPipeline.from_pretrained(
            folder, threads=args.threads, kv_dtype=args.kv_dtype, max_seq_len=512
        ) as pipe:
            for batch in args.batches:
                row = compare(pipe, model, batch, args.prompt_tokens, args.rounds, args.block)
                row = {"model": name, "kv_dtype": pipe.stages[0].layout.dtype} | row
                rows.append(row)
                print(
                    f"{name} batch {batch:3d}: {row['decode_tokens_per_s']:8.1f} tokens/s, "
                    f"transformers {row['transformers_decode_tokens_per_s']:8.1f}, "
                    f"decode {row['decode_ratio']:.2f}x, prefill {row['prefill_ratio']:.2f}x",
                    flush=True,
                )
        del model
    report["rows"] = rows
    return report


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--block", type=int, default=6, help="timed steps in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks/checkpoints"))
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    report = run(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
