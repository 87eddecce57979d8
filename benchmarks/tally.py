"""How all contestants of a throughput benchmark are timed: by when results come out."""

from __future__ import annotations

import time

from benchmarks.record import BenchmarkError, Measurement

_LEAST_FRAMES = 4


class Tally:
    """Times a steady stream of results: the first, while a pipeline fills, and the last, while it runs empty, not.

    The one that runs frames calls `tick` for each result, goes on making frames until `is_done`, and then stops.

    Args:
        seconds: How long to count; at least four frames are counted in any case.
        warm_up: Results to let pass before.
    """

    __slots__ = ("_began", "_began_cpu", "_ended", "_ended_cpu", "_frames", "_seconds", "is_done")

    def __init__(self, seconds: float, *, warm_up: int) -> None:
        self.is_done = False
        self._seconds = seconds
        self._frames = -warm_up
        self._began = self._ended = self._began_cpu = self._ended_cpu = 0.0

    def tick(self) -> None:
        """Take note of a result."""
        if self.is_done:
            return
        self._frames += 1
        if self._frames == 0:
            self._began, self._began_cpu = time.perf_counter(), time.process_time()
        elif self._frames >= _LEAST_FRAMES:
            self._ended = time.perf_counter()
            if self._ended - self._began >= self._seconds:
                self._ended_cpu = time.process_time()
                self.is_done = True

    def measurement(self) -> Measurement:
        """Return frames/s, and the CPU time that the process used for a frame.

        Raises:
            BenchmarkError: Results ended before the time was up.
        """
        if not self.is_done:
            raise BenchmarkError(f"only {self._frames} results came after the warm-up. Let frames run until is_done.")
        return Measurement(
            {
                "frames": float(self._frames),
                "frames_per_s": self._frames / (self._ended - self._began),
                "cpu_ms_per_frame": 1e3 * (self._ended_cpu - self._began_cpu) / self._frames,
            }
        )
