"""The benchmarks of live video, for `python -m benchmarks`."""

from __future__ import annotations

from benchmarks.live import chromium, ends, modes
from benchmarks.settings import Benchmark

BENCHMARKS = {
    "live": Benchmark("a caller's video through a network and back, beside the usual ways", modes.run, modes.tables),
    "live-chromium": Benchmark(
        "a browser's camera through a network and back, as the browser sees it", chromium.run, chromium.tables
    ),
    "live-ends": Benchmark("how soon a connection's end gives everything back", ends.run, ends.tables),
}
