"""Numbers for people: bytes, times and counts in units that fit them."""

from __future__ import annotations


def nbytes_text(count: float) -> str:
    """Bytes in binary units, such as "6.6 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """A time, such as "3.2 ms"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def plural(count: int, noun: str, ending: str = "s") -> str:
    """A count with its noun, such as "1 layer" and "2 layers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{ending}"
