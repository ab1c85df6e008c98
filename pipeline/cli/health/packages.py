"""Python and the libraries: present, which version, and whether another owns our import names."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from kernels import __version__
from pipeline.cli.health.finding import Finding

SUBJECT = "software"
REQUIRED = ("torch", "safetensors", "tokenizers", "numpy", "einops", "jinja2", "typer", "rich")
OURS = ("kernels", "model", "pipeline")
DISTRIBUTION = "lamella"


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """Versions of Lamella, Python and the libraries it needs."""
    home = Path(__file__).parents[3]
    yield Finding(SUBJECT, "lamella", "ok", f"{__version__} in {home}")
    yield Finding(SUBJECT, "python", "ok", f"{platform.python_version()} {sys.executable}")
    for name in REQUIRED:
        found = installed(name)
        if found is None:
            yield Finding(SUBJECT, name, "fail", "missing", f"pip install {name}")
        else:
            yield Finding(SUBJECT, name, "ok", found)
    found = installed("transformers")
    yield Finding(
        SUBJECT, "transformers", "ok", found or "missing (only tests and training use it)"
    )


def import_names() -> Iterator[Finding]:
    """Whether `kernels`, `model` and `pipeline` are ours alone, and come from one place."""
    owners = packages_distributions()
    for name in OURS:
        others = sorted({d for d in owners.get(name, ()) if d.lower() != DISTRIBUTION})
        if others:
            yield Finding(
                SUBJECT,
                f"import {name}",
                "fail",
                f"also owned by the distribution {', '.join(others)}",
                f"pip uninstall {' '.join(others)}, then install lamella again; "
                "or give each an environment of its own",
            )
    yield from _one_place()


def _one_place() -> Iterator[Finding]:
    specs = {name: importlib.util.find_spec(name) for name in OURS}
    places = {
        name: str(Path(spec.origin).parents[1]) if spec and spec.origin else "nowhere"
        for name, spec in specs.items()
    }
    if len(set(places.values())) == 1:
        yield Finding(SUBJECT, "import packages", "ok", f"{', '.join(OURS)} from one place")
        return
    found = "; ".join(f"{name} from {place}" for name, place in places.items())
    yield Finding(
        SUBJECT,
        "import packages",
        "fail",
        found,
        "another package has one of these names: start from another folder, or uninstall it",
    )
