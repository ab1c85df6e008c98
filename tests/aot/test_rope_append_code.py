"""The code of `rope_append`: only unfused, exact operations give the reference's codes, and offsets
of strided heads have 64 bits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In a process of its own: this one has decorated the kernels for the interpreter.
SCRIPT = """
import json, re
from kernels import get_op
from kernels.aot.compiler import compile_variant
from kernels.aot.variants import Variant, record

float32 = re.compile(r"\\b((?:fma|mul|div|sqrt|add|sub|rcp)[a-z.]*\\.f32)\\b")
uses_stride = re.compile(r"^ *%\\w+ = .*%\\w+_stride\\b")
for variant in record(get_op("rope_append"), ["sm_90"]):
    assert isinstance(variant, Variant), variant
    meta = variant.launch.meta
    code = compile_variant(variant).asm
    found = sorted(set(float32.findall(code["ptx"])))
    uses = [line.strip() for line in code["ttir"].splitlines() if uses_stride.search(line)]
    print(json.dumps([variant.case, meta["QUANTIZED"], meta["NORM_Q"], found, uses]))
"""


@pytest.fixture(scope="module")
def variants() -> list[Any]:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=variables | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
def test_float32_operations_are_rounded_one_by_one(variants: list[Any]) -> None:
    assert {quantized for _, quantized, *_ in variants} == {True, False}
    for case, quantized, norm, operations, _ in variants:
        kinds = {operation.split(".")[0] for operation in operations}
        assert "fma" not in kinds, (case, operations)
        assert not any("approx" in operation or "ftz" in operation for operation in operations)
        assert ("div.rn.f32" in operations) == (quantized or norm), (case, operations)


@pytest.mark.timeout(300)
def test_strides_are_widened_before_they_are_multiplied(variants: list[Any]) -> None:
    for case, *_, uses in variants:
        assert len(uses) >= 6, (case, uses)
        assert all(re.search(r"= arith\.extsi %\w+ : i32 to i64", use) for use in uses), (
            case,
            uses,
        )
