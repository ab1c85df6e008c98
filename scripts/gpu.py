"""Ten minutes on a GPU: check, time, tune, time again and test, for whoever has one to lend.

Works offline and installs nothing: torch, Triton, numpy and einops are enough for most, and
tests run where pytest is there. Each part runs in processes of its own, for a share of the time,
and writes what it has as it goes, so that none takes another's results with it. Everything ends up
in `tests/bench/results/gpu-<device>.json`; tuned configurations also in the store of this machine
(see `kernels.tuning`). `--device cpu` is a rehearsal on a few small cases.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "bench" / "results"
# Part -> its share of the time. What a part leaves over goes to those after it.
SHARES = {
    "look": 0.08,
    "check": 0.22,
    "bench": 0.2,
    "tune": 0.2,
    "bench_tuned": 0.12,
    "step": 0.13,
    "tests": 0.05,  # and what the others left over
}

Write = Callable[[dict[str, Any]], None]


def look(device: str, seconds: float, write: Write) -> None:
    """Hardware, versions, what is missing, and the bandwidth of a copy."""
    from kernels.benchmarking.environment import environment
    from kernels.benchmarking.timing import copy_bandwidth, product_rate

    optional = ("pytest", "hypothesis", "transformers", "flash_attn", "flashinfer", "safetensors")
    found: dict[str, Any] = {"environment": environment(device)}
    found["missing"] = [name for name in optional if find_spec(name) is None]
    write(found)
    found["copy_gb_per_s"] = copy_bandwidth(device) / 1e9
    found["product_tflop_per_s"] = product_rate(device) / 1e12
    write(found)


def check(device: str, seconds: float, write: Write) -> None:
    """Every kernel against float64, on the device; kernels compile in several processes."""
    from kernels.checking import check_jobs, run_checks

    impls = ("triton",) if device == "cuda" else ("cpu",)
    jobs = check_jobs(_operators(device), impls, device=device)
    red: list[dict[str, Any]] = []
    processes = min(8, os.cpu_count() or 1)  # they compile, mostly
    write({"cases": len(jobs), "done": 0, "ok": False, "red": red})
    for done, outputs in enumerate(run_checks(jobs, processes), start=1):
        red += [asdict(row) for row in outputs if not row.ok]
        ok = not red and done == len(jobs)
        write({"cases": len(jobs), "done": done, "ok": ok, "red": red})


def bench(device: str, seconds: float, write: Write) -> None:
    """All figures, those of the targets first."""
    from kernels import get_op
    from kernels.benchmarking.run import BenchRequest
    from kernels.benchmarking.run import bench as time_all

    only = "" if device == "cuda" else "T1-"
    request = BenchRequest(_operators(device), device, only=only, seconds=0.2)
    targets = {(op, c.name) for op in request.ops for c in get_op(op).cases if c.gpu}
    jobs = sorted(request.jobs(), key=lambda job: (job["op"], job["case"]) not in targets)
    rows: list[dict[str, Any]] = []

    def told(found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        results = [row for row in rows if "refused" not in row]
        refused = [row for row in rows if "refused" in row]
        write({"cases": len(jobs), "results": results, "refused": refused})

    write({"cases": len(jobs), **time_all(request, jobs, told)})


def tune(device: str, seconds: float, write: Write) -> None:
    """Sweep the launch configurations of the targets' kernels."""
    from kernels import get_op
    from kernels.benchmarking.run import BenchRequest
    from kernels.benchmarking.run import tune as tune_all
    from kernels.target import target_of
    from kernels.tuning import local_store

    if device != "cuda":
        write({"skipped": "needs a CUDA GPU"})
        return
    import torch

    # An operator at a time: what one found is written before the next begins. Prefill is swept
    # where it is quick to check, and keeps no key of its own for long prompts.
    names = [op for op in _operators(device) if get_op(op).implementations.get("triton")]
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + 0.9 * seconds
    for index, name in enumerate(sorted(names, key=_importance)):
        share = (end - time.monotonic()) / (len(names) - index)
        request = BenchRequest((name,), device, only=_TUNED.get(name, ""))
        rows += tune_all(request, share * _WEIGHT.get(name, 1.0))
        path = local_store(target_of(torch.device("cuda")))
        store = json.loads(path.read_text()) if path.exists() else {}
        write({"tuned": rows, "store": store})


# What matters most goes first, with more of the time.
_WEIGHT = {"attention": 2.0, "decode_mlp": 1.5}
_TUNED = {"attention": "32x8x128"}


def _importance(op: str) -> int:
    order = ("attention", "decode_mlp", "linear", "greedy", "logits", "rope_append", "rms_norm")
    return order.index(op) if op in order else len(order)


def step(device: str, seconds: float, write: Write) -> None:
    """A whole decode step of Llama-3.1-8B's shape, weights random; transformers' at batch 1."""
    import gc

    from tests.bench.step import measure, measure_transformers

    if device == "cpu":
        write({"results": [measure("tiny", device, 1, 16, 8)]})
        return
    import torch

    rows: list[dict[str, Any]] = []
    for batch in (1, 16):
        rows.append(measure("llama-3.1-8b", "cuda:0", batch, 512, 64))
        write({"results": rows})
        gc.collect()
        torch.cuda.empty_cache()
    if find_spec("transformers") is None:
        write({"results": rows, "missing": ["transformers"]})
        return
    rows.append(measure_transformers("llama-3.1-8b", "cuda:0", 1, 512, 64))
    write({"results": rows})


def tests(device: str, seconds: float, write: Write) -> None:
    """`pytest --device` on the three packages, compiled; files that need what is missing are errors
    of their own."""
    if find_spec("pytest") is None:
        write({"skipped": "pytest is not installed"})
        return
    folders = ["tests/kernels", "tests/model", "tests/pipeline"]
    if device == "cpu":
        folders = ["tests/kernels/test_layout.py"]
    # Not the project's own options: plugins that they are strict about may be missing.
    options = ["-o", "addopts=--import-mode=importlib", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *folders, *options, "--device", device]
    command += ["-q", "-rfE", "--tb=line"]
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            write({"output": lines[-200:], "failed": _failed(lines)})
    write({"exit_code": process.returncode, "output": lines[-200:], "failed": _failed(lines)})


def _failed(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("FAILED", "ERROR"))]


PARTS: dict[str, Callable[[str, float, Write], None]] = {
    "look": look,
    "check": check,
    "bench": bench,
    "tune": tune,
    "bench_tuned": bench,
    "step": step,
    "tests": tests,
}


def _operators(device: str) -> tuple[str, ...]:
    from kernels.override import OPERATORS

    return tuple(OPERATORS) if device == "cuda" else ("rms_norm",)


def run_part(name: str, args: argparse.Namespace, seconds: float, place: Path) -> dict[str, Any]:
    """A part in a process of its own, ended with all its children when its time is up."""
    path = place / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--device", args.device, "--part", name]
    command += ["--part-seconds", str(seconds), "--part-file", str(path)]
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        status = "done" if process.wait(seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "out of time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(path.read_text()) if path.exists() else {}
    return {"status": status, "seconds": round(time.monotonic() - start, 1), **found}


def main() -> int:
    """Run all parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (default: 10)")
    parser.add_argument("--only", help=f"parts, as a list: {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--part-seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--part-file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT)])
    if args.device == "cuda":
        os.environ.pop("TRITON_INTERPRET", None)
    if args.part:
        return one_part(args)
    chosen = args.only.split(",") if args.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"--only {','.join(unknown)}: expected some of {','.join(PARTS)}")
    return all_parts(args, chosen)


def one_part(args: argparse.Namespace) -> int:
    """In this process; an error is written beside what there is already."""
    found: dict[str, Any] = {}

    def write(what: dict[str, Any]) -> None:
        found.clear()
        found.update(what)
        _save(args.part_file, found)

    try:
        PARTS[args.part](args.device, args.part_seconds, write)
    except Exception as error:  # whatever it is, the other parts go on
        traceback.print_exc()
        _save(args.part_file, {**found, "error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def all_parts(args: argparse.Namespace, chosen: list[str]) -> int:
    """One after another; the document is whole after each."""
    from tests.bench.targets import table

    args.out.mkdir(parents=True, exist_ok=True)
    left, document = 60 * args.minutes, {"command": sys.argv, "parts": {}}
    path = args.out / f"gpu-{args.device}-unknown.json"
    shares = {name: SHARES[name] for name in chosen}
    place = args.out / "parts"
    place.mkdir(exist_ok=True)
    for name in chosen:
        seconds = left * shares[name] / sum(shares[n] for n in chosen[chosen.index(name) :])
        print(f"{name}: up to {seconds:.0f} s", flush=True)
        part = run_part(name, args, seconds, place)
        left -= part["seconds"]
        document["parts"][name] = part
        if "environment" in part and path.name.endswith("-unknown.json"):
            path.unlink(missing_ok=True)
            device = part["environment"]["device"]
            path = args.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
        document["targets"] = _targets(document["parts"])
        _save(path, document)
        (place / f"{name}.json").unlink(missing_ok=True)
        print(f"{name}: {part['status']} after {part['seconds']:.0f} s; {_told(part)}", flush=True)
    place.rmdir()
    print(table(document["targets"]))
    print(path)
    wrong = {name: why for name, part in document["parts"].items() if (why := wrongs(name, part))}
    for name, why in wrong.items():
        print(f"{name}: {'; '.join(why)}")
    return int(bool(wrong))


def _targets(parts: dict[str, Any]) -> list[dict[str, Any]]:
    from tests.bench.targets import targets

    timed = [
        row for name in ("bench", "bench_tuned") for row in parts.get(name, {}).get("results", ())
    ]
    return targets(timed, parts.get("step", {}).get("results", ()))


def wrongs(name: str, part: dict[str, Any]) -> list[str]:
    """What of a part is no success, in words. Times may run out anywhere but in the check."""
    found = ["it failed"] if part["status"] == "failed" else []
    if name == "check" and not part.get("ok"):
        red = len(part.get("red", ()))
        found.append(f"{red} red, {part.get('done', 0)} of {part.get('cases', '?')} cases checked")
    if refused := [row for row in part.get("refused", ()) if not row["peer"]]:
        found.append(f"{len(refused)} of our own figures refused")
    if part.get("exit_code"):
        found.append(f"pytest's exit code is {part['exit_code']}")
    elif part.get("failed"):
        found.append(f"{len(part['failed'])} tests failed")
    return found


def _told(part: dict[str, Any]) -> str:
    """A part in a few words."""
    if "error" in part or "skipped" in part:
        return str(part.get("error") or part["skipped"])
    counts = {
        key: len(part[key])
        for key in ("results", "refused", "red", "tuned", "failed")
        if key in part
    }
    return ", ".join(f"{count} {key}" for key, count in counts.items()) or "nothing to count"


def _save(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
