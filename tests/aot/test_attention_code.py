"""The code of `attention`: while one tile of K and V is worked on, others are under way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In a process of its own: this one has decorated the kernels for the interpreter.
SCRIPT = """
import json, re, sys
from kernels import get_op
from kernels.aot.compiler import compile_variant
from kernels.aot.variants import record

waits = re.compile(r"async_wait .*num = (\\d+)")
seen = set()
for variant in record(get_op("attention"), [sys.argv[1]]):
    meta = variant.launch.meta
    kind = (variant.launch.name, str(meta["COMPUTE"]), meta["QUANTIZED"])
    if meta["D"] != 128 or kind in seen or "float32" in kind[1] or "fp32" in kind[1]:
        continue
    seen.add(kind)
    found = [int(number) for number in waits.findall(compile_variant(variant).asm["ttgir"])]
    print(json.dumps([*kind, found]))
"""

# Calls of a model with 32 and 8 heads of 128, of all sorts of sizes.
GRID = """
import json
from dataclasses import replace
from kernels import get_op
from kernels.aot.variants import record
from kernels.attention.cases import _case

op = get_op("attention")
heads = (32, 8, 128)
calls = [("decode", [(1, 4096)] * batch) for batch in (1, 2, 7, 16, 33, 64, 65, 128, 200)]
calls += [("prefill", [(tokens, 4096)]) for tokens in (2, 3, 20, 100, 2047)]
cases = tuple(
    _case(kind, rows, heads, 16, kv, "bf16", told=True)
    for kind, rows in calls
    for kv in ("bf16", "int8")
)
ahead = {variant.key for variant in record(op, ["sm_90"])}
launched = [(v.case, v.key) for v in record(replace(op, aot=cases), ["sm_90"])]
print(json.dumps([len(launched), [case for case, key in launched if key not in ahead]]))
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_loops_do_not_wait_for_the_loads_they_have_just_issued(arch: str) -> None:
    rows = _lines(SCRIPT, arch)
    assert {row[0] for row in rows} == {"attention_decode_kernel", "attention_prefill_kernel"}
    for kernel, compute, quantized, waits in rows:
        assert max(waits) > 0, (kernel, compute, quantized, waits)


@pytest.mark.timeout(300)
def test_calls_of_any_size_were_compiled_ahead() -> None:
    ((launched, missing),) = _lines(GRID)
    assert launched >= 4
    assert not missing


def _lines(script: str, *arguments: str) -> list[Any]:
    """What a script prints, read as JSON."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=variables | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
