"""Perplexity of the bundled model on its held-out text, for every KV layout.

Windows of bos and 511 tokens that do not overlap, as in the model's own record. Run as
`python -m tests.bench.perplexity`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from model import bundled_model_path
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.perplexity import perplexity
from tests.bench.environment import environment

WINDOW = 511


def main() -> None:
    """Score, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = (bundled_model_path() / "heldout.txt").read_text()
    rows: list[dict[str, Any]] = []
    for kv_dtype in ("fp16", "bf16", "int8"):
        with LlamaPipeline.from_pretrained(kv_dtype=kv_dtype, threads=args.threads) as pipe:
            result = perplexity(pipe, text, WINDOW)
        over = result.perplexity / rows[0]["perplexity"] - 1 if rows else 0.0
        rows.append({"kv_dtype": kv_dtype, **result.json(), "over_fp16": over})
        print(f"{kv_dtype}: {result.perplexity:.4f} ({over:+.3%})")
    if args.out:
        report = {"benchmark": "perplexity", "environment": environment(args.threads)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
