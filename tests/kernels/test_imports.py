"""`import kernels` is light and never fails; checked in fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kernels


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(kernels.__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = "('torch', 'numpy', 'triton', 'einops', 'transformers')"
    code = f"import sys, kernels; print([m for m in {heavy} if m in sys.modules])"
    assert _python(code) == "[]"


def test_import_works_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import kernels; print(kernels.__version__)"
    assert _python(code) == kernels.__version__


def test_public_names_resolve_lazily() -> None:
    code = (
        "import types, kernels; from kernels.override import override; "
        "assert kernels.override is override; "
        "assert isinstance(kernels.attention, types.ModuleType); "
        "assert callable(kernels.attention.attention); "
        "import kernels.registry; "
        "assert all(getattr(kernels, name) is not None for name in kernels.__all__); "
        "assert kernels.get_op('linear') is kernels.OPS['linear']; "
        "assert {*kernels.__all__, 'attention'} <= set(dir(kernels)); print('ok')"
    )
    assert _python(code) == "ok"


def test_version_is_a_literal_below_0_9() -> None:
    tree = ast.parse(Path(kernels.__file__).read_text())
    literals = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and [getattr(target, "id", None) for target in node.targets] == ["__version__"]
    ]
    assert literals == [kernels.__version__]
    assert tuple(map(int, kernels.__version__.split(".")[:2])) < (0, 9)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atention'"):
        kernels.atention  # noqa: B018
