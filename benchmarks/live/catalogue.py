"""The benchmarks of live video, for `python -m benchmarks`."""

from __future__ import annotations

from benchmarks.live import ends, modes
from benchmarks.settings import Benchmark

BENCHMARKS = {
    "live": Benchmark("a caller's video through a network and back, beside the usual ways", modes.run, modes.tables),
    "live-ends": Benchmark("how soon a connection's end gives everything back", ends.run, ends.tables),
}
