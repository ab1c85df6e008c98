"""The process that records and compiles: `python -m kernels.aot.worker`."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

from kernels.aot.compiler import compile_variant
from kernels.aot.limits import has_backend
from kernels.aot.resources import code_of, resources_of
from kernels.aot.variants import Failure, Variant, record
from kernels.errors import UnsupportedError
from kernels.own import load_own
from kernels.processes import Job, Result, serve
from kernels.registry import get_op


@functools.cache
def _recorded(
    ops: tuple[str, ...], archs: tuple[str, ...], own: str | None, like: str
) -> tuple[Variant | Failure, ...]:
    for arch in archs:
        if not has_backend(arch):
            raise UnsupportedError(f"this Triton has no backend for {arch}")
    function = None if own is None else load_own(own)
    return tuple(
        found
        for op in ops
        if function is not None or "triton" in get_op(op).implementations
        for found in record(get_op(op), archs, function, like)
    )


def handle(job: Job) -> Result:
    """List all variants, or compile one of them and tell what it takes or show its code."""
    found = _recorded(tuple(job["ops"]), tuple(job["archs"]), job["own"], job["like"])
    if job["do"] == "list":
        return {"found": [_document(item) for item in found]}
    variant = next(v for v in found if isinstance(v, Variant) and v.key == job["key"])
    compiled = compile_variant(variant)
    if job["do"] == "code":
        return {"code": code_of(compiled, job["kind"])}
    return asdict(resources_of(compiled))


def _document(item: Variant | Failure) -> dict[str, Any]:
    if isinstance(item, Failure):
        return {**asdict(item), "kernel": item.op, "key": None}
    return {
        "op": item.op,
        "case": item.case,
        "arch": item.arch,
        "key": item.key,
        "kernel": item.launch.name,
    }


if __name__ == "__main__":
    serve(handle)
