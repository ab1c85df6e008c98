"""Launch configurations: a default by rule, a tuned one where a measurement has been kept.

A `Tunable` names what may vary in a kernel. Measurements are kept per GPU: those in
`kernels/tuned/<gpu>.json` come with the package, those of this machine lie in
`$LAMELLA_CACHE` (default `~/.cache/lamella`) per GPU and Triton version, and win. Entries of
constants that a kernel no longer has are passed over.

A key never holds the number of rows of a call: a configuration decides the order of sums, and a
row's bits must not depend on how many others there are.
"""

from __future__ import annotations

import functools
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch

from kernels.target import Target, target_of

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Config:
    """Values of a kernel's constants, and how it is compiled."""

    constants: Mapping[str, int]
    num_warps: int
    num_stages: int

    @property
    def meta(self) -> dict[str, int]:
        """As keyword arguments of a launch, and as the stores keep it."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}

    @classmethod
    def from_json(cls, value: Mapping[str, int]) -> Config:
        """The inverse of `meta`."""
        constants = {k: v for k, v in value.items() if k not in ("num_warps", "num_stages")}
        return cls(constants, value["num_warps"], value["num_stages"])


@dataclass(frozen=True, eq=False)
class Tunable:
    """A kernel's choice of configuration. `default` and `space` take a key and a target."""

    name: str
    default: Callable[[Key, Target], Config]
    space: Callable[[Key, Target], list[Config]] = field(default=lambda key, target: [])

    def config(self, key: Key, device: torch.device) -> Config:
        """The configuration for `key` on `device`: forced, tuned or default, in that order."""
        for keys in _state.recorders:
            keys.append((self, key))
        forced = _state.forced.get((self.name, key))
        return forced if forced is not None else _chosen(self, key, target_of(device))


class _State(threading.local):
    def __init__(self) -> None:
        self.forced: dict[tuple[str, Key], Config] = {}
        self.recorders: list[list[tuple[Tunable, Key]]] = []


_state = _State()


@contextmanager
def forced(tunable: Tunable, key: Key, config: Config) -> Iterator[None]:
    """Use `config` for `key` in this thread."""
    _state.forced[tunable.name, key] = config
    try:
        yield
    finally:
        del _state.forced[tunable.name, key]


@contextmanager
def seen() -> Iterator[list[tuple[Tunable, Key]]]:
    """The tunables and keys that this thread asks for within the block."""
    keys: list[tuple[Tunable, Key]] = []
    _state.recorders.append(keys)
    try:
        yield keys
    finally:
        _state.recorders.remove(keys)


def entry_name(name: str, key: Key) -> str:
    """How a store names a tunable's key."""
    return f"{name}({', '.join(str(part) for part in key)})"


def keep(target: Target, entries: Mapping[str, Config], path: Path | None = None) -> Path:
    """Add tuned configurations to a store (default: this machine's); returns its path."""
    path = local_store(target) if path is None else path
    known = _read(path) if path.exists() else {}
    merged = {**known, **entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: merged[name].meta for name in sorted(merged)}, indent=1)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n")
    temporary.replace(path)
    _tuned.cache_clear()
    _chosen.cache_clear()
    return path


def local_store(target: Target) -> Path:
    """Where this machine's measurements lie."""
    import triton

    root = os.environ.get("LAMELLA_CACHE") or Path.home() / ".cache" / "lamella"
    return Path(root) / "tuned" / f"{slug(target)}-triton-{triton.__version__}.json"


def slug(target: Target) -> str:
    """A GPU's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")


@functools.cache
def _chosen(tunable: Tunable, key: Key, target: Target) -> Config:
    default = tunable.default(key, target)
    tuned = _tuned(target).get(entry_name(tunable.name, key))
    if tuned is None or tuned.constants.keys() != default.constants.keys():
        return default
    return tuned


@functools.cache
def _tuned(target: Target) -> dict[str, Config]:
    found: dict[str, Config] = {}
    packaged = resources.files("kernels") / "tuned" / f"{slug(target)}.json"
    if packaged.is_file():
        found |= _read(packaged)
    if target.arch != "interpreter" and (local := local_store(target)).is_file():
        found |= _read(local)
    return found


def _read(path: Path | Traversable) -> dict[str, Config]:
    """The entries of a store; none, with a warning, where it is not one."""
    try:
        entries = json.loads(path.read_text())
        found = {name: Config.from_json(value) for name, value in entries.items()}
        if not all(type(v) is int for config in found.values() for v in config.meta.values()):
            raise ValueError("a value is not an integer")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        warnings.warn(f"{path} is ignored: not tuned configurations ({error!r})", stacklevel=2)
        return {}
    return found
