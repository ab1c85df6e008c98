"""The code of `attention`: while one tile of K and V is worked on, others are under way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_loops_do_not_wait_for_the_loads_they_have_just_issued(arch: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arch],
        env=variables | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == {"attention_decode_kernel", "attention_prefill_kernel"}
    for kernel, compute, quantized, waits in rows:
        assert max(waits) > 0, (kernel, compute, quantized, waits)
