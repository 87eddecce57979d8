"""The server's own condition while it serves, whoever it is: how late its loop runs, and how its memory grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from benchmarks.live.call import slope
from benchmarks.machine import resident_bytes
from benchmarks.summary import percentile

_INTERVAL_S = 0.02
_MEMORY_EVERY = 25


class Probe:
    """Measures for as long as its block lasts, with a timer that is due every 20 ms."""

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._memory: list[tuple[float, int]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="benchmark probe")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    def figures(self) -> dict[str, float]:
        """Return what was found: lag, and the growth of memory over the last four fifths of the time."""
        memory = self._memory[len(self._memory) // 5 :]
        growth = slope([at for at, _ in memory], [size for _, size in memory]) if len(memory) > 2 else 0.0
        return {
            "lag_p50_ms": 1e3 * percentile(self._lags, 0.5),
            "lag_p99_ms": 1e3 * percentile(self._lags, 0.99),
            "memory_mb": max((size for _, size in self._memory), default=0) / 2**20,
            "memory_kb_per_s": growth / 2**10,
        }

    def series(self) -> dict[str, Sequence[float]]:
        """Return what was sampled along the way."""
        return {"memory_mb": [size / 2**20 for _, size in self._memory]}

    async def _run(self) -> None:
        count = 0
        while True:
            due = time.monotonic() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            self._lags.append(max(0.0, time.monotonic() - due))
            count += 1
            if count % _MEMORY_EVERY == 0:
                # /proc is memory: reading it takes microseconds.
                self._memory.append((time.monotonic(), resident_bytes()))
