"""Peak memory of loading one stage of two, over the bare process, against the stage's own weights.

Each measurement runs in a process of its own: a bare one that imports the same modules, and one
that loads the stage. The peak is the kernel's high-water mark (VmHWM), file pages included.
Run as `python -m tests.bench.load_memory`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.checkpoints import SHAPES, random_checkpoint
from tests.bench.environment import environment

CHILD = """
import sys
import torch
torch.set_num_threads(1)
from model.checkpoint import Checkpoint
from model.stage import LlamaStage, StageSpec
import kernels.linear, kernels.attention.cpu
folder, start, stop, last = sys.argv[1], *map(int, sys.argv[2:5])
stored = weight = 0
checkpoint = Checkpoint.open(folder)
if stop:
    def read(name, nbytes):
        global stored
        stored += nbytes
    stage = LlamaStage.load(
        checkpoint, StageSpec(range(start, stop), embed=start == 0, head=stop == last),
        max_seq_len=16, kv_tokens=16, progress=read)
    weight = stage.weight_bytes
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024, stored, weight)
"""


def child(folder: Path, start: int, stop: int, layers: int) -> tuple[int, int, int]:
    """(peak bytes, bytes read from the checkpoint, bytes of packed weights) of a fresh process."""
    command = [sys.executable, "-c", CHILD, str(folder), str(start), str(stop), str(layers)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, stored, weight = map(int, output.split())
    return peak, stored, weight


def measure(folder: Path, layers: int) -> list[dict[str, Any]]:
    """One row per stage of an even two-stage split."""
    bare, _, _ = child(folder, 0, 0, layers)
    rows = []
    for index, (start, stop) in enumerate(((0, layers // 2), (layers // 2, layers))):
        peak, stored, weight = child(folder, start, stop, layers)
        rows.append(
            {
                "stage": index,
                "layers": f"{start}-{stop - 1}",
                "checkpoint_bytes": stored,
                "packed_bytes": weight,
                "peak_over_bare_bytes": peak - bare,
                "peak_ratio": (peak - bare) / stored,
            }
        )
    return rows


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="1b")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks/checkpoints"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = random_checkpoint(args.model, args.cache)
    rows = measure(folder, SHAPES[args.model]["num_hidden_layers"])
    for row in rows:
        print(
            f"stage {row['stage']} (layers {row['layers']}): weights "
            f"{row['checkpoint_bytes'] / 1e6:.0f} MB, peak over the bare process "
            f"{row['peak_over_bare_bytes'] / 1e6:.0f} MB, {row['peak_ratio']:.2f}x"
        )
    if args.out:
        report = {"benchmark": "load_memory", "environment": environment(1), "model": args.model}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
