"""What a figure must stand beside: hardware, versions, commit and date."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.processes import usable_cores

# Of `git rev-parse --local-env-vars`, those that lead to another repository or another index.
_OF_A_REPOSITORY = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
}


def environment(device: str) -> dict[str, Any]:
    """Everything about where a run on `device` ("cpu" or "cuda") took place."""
    return {
        "device": device_name(device),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),  # of the minute before
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(Path(__file__).parents[2]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def device_name(device: str) -> str:
    """The GPU's name as the driver gives it, or the processor's as the kernel does."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def slug(device: str) -> str:
    """Device, torch and Triton version as a file name: figures of other slugs are no baseline."""
    parts = f"{device_name(device)}-torch-{torch.__version__}-triton-{package_version('triton')}"
    return re.sub(r"[^a-z0-9.]+", "-", parts.lower()).strip("-")


def package_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """Short commit of the work tree whose top is `folder`, with a + if it has changes or files that
    are in no commit; None if it is none."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return None  # installed within another project
    name = _git(folder, "rev-parse", "--short=10", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    return None if name is None else f"{name}{'+' if changes else ''}"


def git_environment() -> dict[str, str]:
    """This process's environment for git: without what hooks have set, of another repository."""
    return {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=git_environment(),
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
