"""The benchmarks of learning, for `python -m benchmarks`."""

from __future__ import annotations

from benchmarks.learning import memory, period, quality, throughput
from benchmarks.settings import Benchmark

BENCHMARKS = {
    "learning-quality": Benchmark("how well the update rules learn real streams", quality.run, quality.tables),
    "learning-throughput": Benchmark("frames/s of learning, two stages", throughput.run, throughput.tables),
    "learning-period": Benchmark("how often simulated stages learn", period.run, period.tables),
    "learning-memory": Benchmark("what the update rules keep", memory.run, memory.tables),
}
