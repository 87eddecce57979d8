"""What memory a process uses, and whether that grows."""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.machine import resident_bytes

_BLOCKS = 10
_LEAST_SAMPLES = 2 * _BLOCKS


_FIELDS = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


def used_bytes() -> int:
    """Return what C's `malloc` has given out and not got back, without what it keeps free; 0: only glibc 2.33 tells.

    Python's own objects of up to 512 bytes are no part of it: Python asks for arenas of memory, which are. The objects
    in them are counted by `sys.getallocatedblocks`.
    """
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What this process uses.

    Attributes:
        resident_bytes: What it really occupies.
        malloc_bytes: See `used_bytes`.
        python_blocks: Pieces of memory that Python's objects have.
    """

    resident_bytes: int
    malloc_bytes: int
    python_blocks: int

    @classmethod
    def now(cls) -> MemoryUse:
        """Look, without collecting garbage."""
        return cls(resident_bytes(), used_bytes(), sys.getallocatedblocks())


def full_collections() -> int:
    """Return how often the garbage collector has gone through everything."""
    count: int = gc.get_stats()[-1]["collections"]
    return count


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through the latter half of a series.

    Attributes:
        slope: Growth from one sample to the next.
        error: The standard error of the slope. Memory moves in steps, and a sample is much like the one before: it is
            found by leaving out a tenth of the samples at a time (the jackknife with blocks). NaN: there are too few.
    """

    slope: float
    error: float

    @classmethod
    def of(cls, series: Sequence[float]) -> Trend:
        """Fit the latter half: at first pools fill, caches warm up, and heaps grow to what they need."""
        y = series[len(series) // 2 :]
        if len(y) < _LEAST_SAMPLES:
            return cls(_slope(range(len(y)), y), math.nan)
        bounds = [len(y) * block // _BLOCKS for block in range(_BLOCKS + 1)]
        slopes = []
        for start, end in itertools.pairwise(bounds):
            x = [*range(start), *range(end, len(y))]
            slopes.append(_slope(x, [y[place] for place in x]))
        mean = sum(slopes) / _BLOCKS
        variance = (_BLOCKS - 1) / _BLOCKS * sum((slope - mean) ** 2 for slope in slopes)
        return cls(_slope(range(len(y)), y), math.sqrt(variance))

    @property
    def most(self) -> float:
        """What the slope may be at most, with a probability of some 97%."""
        return self.slope + 2.0 * self.error


def _slope(x: Sequence[int], y: Sequence[float]) -> float:
    if len(x) < 2:
        return 0.0
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
