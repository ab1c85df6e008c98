"""Memory that is left: the machine's, and that of every control group above the process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.host_memory import available_memory

GIB = 1 << 30


def files(root: Path, texts: Mapping[str, object]) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def v2(limit: object, used: int, cached: int = 0) -> dict[str, object]:
    stat = f"anon {used}\ninactive_file {cached}\nactive_file 7"
    return {"memory.max": limit, "memory.current": used, "memory.stat": stat}


def v1(limit: int, used: int, cached: int = 0) -> dict[str, object]:
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used,
        "memory.stat": f"inactive_file 5\ntotal_inactive_file {cached}",
    }


def below(group: str, of: dict[str, object]) -> dict[str, object]:
    return {f"{group}/{name}": text for name, text in of.items()}


@pytest.mark.parametrize(
    ("membership", "groups", "left"),
    [
        ("0::/", {}, 64 * GIB),
        ("0::/", v2("max", 3 * GIB), 64 * GIB),
        ("0::/", v2(8 * GIB, 3 * GIB), 5 * GIB),
        ("0::/", v2(8 * GIB, 3 * GIB, cached=2 * GIB), 7 * GIB),
        ("0::/", v2(2 * GIB, 3 * GIB), 0),
        ("0::/a/b", below("a/b", v2("max", 1)) | below("a", v2(4 * GIB, GIB)), 3 * GIB),
        ("0::/not/here", v2(8 * GIB, 3 * GIB), 5 * GIB),
        ("4:memory:/job\n0::/", below("memory/job", v1(6 * GIB, 5 * GIB, cached=GIB)), 2 * GIB),
        ("4:cpu,memory:/job\n0::/", below("memory", v1(6 * GIB, GIB)), 5 * GIB),
        ("4:memory:/\n0::/u", below("unified/u", v2(9 * GIB, GIB)), 8 * GIB),
        ("4:memory:/\n0::/", below("memory", v1(2**63 - 4096, GIB)), 64 * GIB),
    ],
)
def test_the_least_of_what_is_left_counts(
    tmp_path: Path, membership: str, groups: dict[str, object], left: int
) -> None:
    available = {"meminfo": f"MemTotal: 1 kB\nMemAvailable: {64 << 20} kB"}
    proc = files(tmp_path / "proc", available | {"self/cgroup": membership})
    assert available_memory(proc, files(tmp_path / "cgroup", groups)) == left


def test_of_this_machine() -> None:
    have = available_memory()
    assert have is not None
    assert 1 << 20 < have < 1 << 50
