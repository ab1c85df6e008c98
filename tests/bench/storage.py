"""Where pytest-benchmark keeps baselines: a folder for each device, torch and Triton version.

`python -m tests.bench.storage [cpu|cuda]` prints it. Figures of another folder are no baseline.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernels.benchmarking.environment import slug


def storage(device: str) -> Path:
    """The folder for figures of `device` here."""
    return Path(".benchmarks") / "operators" / slug(device)


if __name__ == "__main__":
    print(storage(sys.argv[1] if len(sys.argv) > 1 else "cpu").as_posix())
