"""A researcher's own implementation of an operator, named on a command line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from kernels.errors import InvalidInputError

Function = Callable[..., Any]


def is_own(impl: str) -> bool:
    """Whether `impl` names a function rather than one of the implementations."""
    return ":" in impl


def load_own(name: str) -> Function:
    """The function that "package.module:function" or "path/to/file.py:function" names.

    Modules are found as for a script in the current folder, those that a file imports as for that
    file as a script. Raises `InvalidInputError` for what is not there, cannot be imported or cannot
    be called.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise InvalidInputError(f"{name!r}: expected module:function or file.py:function")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except InvalidInputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the file does when it is imported
        raise InvalidInputError(f"{name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if function is None:
        raise InvalidInputError(f"{name!r}: {place} has no {attribute!r}")
    if not callable(function):
        raise InvalidInputError(f"{name!r}: {attribute} is {function!r}; expected a function")
    own: Function = function
    return own


def _load_module(name: str) -> ModuleType:
    _import_from(os.getcwd())
    return importlib.import_module(name)


def _import_from(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise InvalidInputError(f"{str(path)!r}: no such file")
    name = f"_own_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _import_from(str(path.parent))
    sys.modules[name] = module  # before it runs: Triton looks up a kernel's module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
