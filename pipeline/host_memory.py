"""How much memory this process may still take: of the machine, and of the groups it is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes of memory that this process can still take without swapping; None if unknown.

    The least of what the machine has and what each control group that the process is in has left
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, and v1), such as a container's.
    """
    rooms = list(_group_rooms(proc, cgroups))
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        rooms += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS has only the second
            if pages in getattr(os, "sysconf_names", ()):
                rooms.append(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))
                break
    return min(rooms, default=None)


def _group_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left to each group that has a limit."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        roots: tuple[Path, ...]
        if number == "0":
            roots, files = (cgroups, cgroups / "unified"), _V2
        elif "memory" in controllers.split(","):
            roots, files = (cgroups / "memory",), _V1
        else:
            continue
        # Limits of the groups above hold, too. In a container the path may be one of outside.
        place = Path(path.strip("/"))
        for root in roots:
            for group in (place, *place.parents):
                # A file that is missing, or "max", is no limit.
                with suppress(OSError, ValueError):
                    yield _room(root / group, *files)


def _room(group: Path, limit: str, usage: str, cached: str) -> int:
    """Limit less usage; cached files that are not in use give way, and count as free."""
    most, used = (int((group / name).read_text()) for name in (limit, usage))
    with suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == cached:
                used -= int(value)
    return max(0, most - used)
