"""What the figures were measured on, and how much of it other programs took meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_PROC = Path("/proc")
_PACKAGES = ("torch", "numpy", "uvloop", "partime-async")

_Jiffies: TypeAlias = dict[int, tuple[int, int]]
"""By process: its parent, and the clock ticks of CPU that it and its ended children have used."""


def describe() -> dict[str, str | int]:
    """Return what this machine is."""
    return {
        "processor": _processor(),
        "cores": len(usable_cores()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def usable_cores() -> set[int]:
    """Return the numbers of the cores this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def resident_bytes() -> int:
    """Return the memory that this process really occupies."""
    pages = int((_PROC / "self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class CpuUse:
    """What one stretch of time saw.

    Attributes:
        seconds: How long it was.
        foreign_share: CPU time that the hypervisor withheld, or processes other than this one and its descendants used,
            as a share of what the usable cores offered; None where the system does not tell.
    """

    seconds: float
    foreign_share: float | None


class CpuMeter:
    """Measures `CpuUse` from its making to `stop`. The system counts in ticks of 10 ms: a second is known to 1%."""

    def __init__(self) -> None:
        self._busy, self._own = _busy_ticks(), _own_ticks()
        self._began = time.perf_counter()

    def stop(self) -> CpuUse:
        """Return what was seen since the meter was made."""
        seconds = time.perf_counter() - self._began
        busy, own = _busy_ticks(), _own_ticks()
        if busy is None or self._busy is None:
            return CpuUse(seconds, None)
        ticks = (busy - self._busy) - (own - self._own)
        offered = seconds * len(usable_cores()) * os.sysconf("SC_CLK_TCK")
        return CpuUse(seconds, max(0.0, ticks / offered))


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _busy_ticks() -> int | None:
    """Return the ticks that the usable cores were not idle, time stolen by the hypervisor included."""
    try:
        lines = (_PROC / "stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    cores = {f"cpu{core}" for core in usable_cores()}
    busy = 0
    for line in lines:
        name, *numbers = line.split()
        if name in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_guests = map(int, numbers)
            busy += user + nice + system + irq + softirq + steal
    return busy


def _own_ticks() -> int:
    """Return the ticks of this process and its descendants."""
    table = _processes()
    own: set[int] = set()
    found = {os.getpid()}
    while found:
        own |= found
        found = {pid for pid, (parent, _) in table.items() if parent in own} - own
    return sum(table[pid][1] for pid in own if pid in table)


def _processes() -> _Jiffies:
    table: _Jiffies = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        table[int(entry.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return table
