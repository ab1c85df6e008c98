"""The code of `rope_append`: only unfused, exact operations give the reference's codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: this one has decorated the kernels for the interpreter.
SCRIPT = """
import json, re
from kernels import get_op
from kernels.aot.compiler import compile_variant
from kernels.aot.variants import Variant, record

float32 = re.compile(r"\\b((?:fma|mul|div|sqrt|add|sub|rcp)[a-z.]*\\.f32)\\b")
for variant in record(get_op("rope_append"), ["sm_90"]):
    assert isinstance(variant, Variant), variant
    meta = variant.launch.meta
    found = sorted(set(float32.findall(compile_variant(variant).asm["ptx"])))
    print(json.dumps([variant.case, meta["QUANTIZED"], meta["NORM_Q"], found]))
"""


@pytest.mark.timeout(300)
def test_float32_operations_are_rounded_one_by_one() -> None:
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
    variants = [json.loads(line) for line in done.stdout.splitlines()]
    assert {quantized for _, quantized, _, _ in variants} == {True, False}
    for case, quantized, norm, operations in variants:
        kinds = {operation.split(".")[0] for operation in operations}
        assert "fma" not in kinds, (case, operations)
        assert not any("approx" in operation or "ftz" in operation for operation in operations)
        assert ("div.rn.f32" in operations) == (quantized or norm), (case, operations)
