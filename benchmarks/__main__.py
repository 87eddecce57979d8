"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--quick] [--device cuda:0] [--tables]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import clients, hop, latency, machine, memory, scaling, soak, sockets, throughput, throughput_cuda
from benchmarks.learning import catalogue as learning
from benchmarks.live import catalogue as live
from benchmarks.readme import replace_table
from benchmarks.record import BenchmarkError, Report
from benchmarks.rounds import say
from benchmarks.settings import Benchmark, Settings
from benchmarks.summary import provenance

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

BENCHMARKS = {
    "throughput": Benchmark("frames/s of two stages on two cores", throughput.run, throughput.tables),
    "scaling": Benchmark("speed-up with simulated devices, loop time per hop", scaling.run, scaling.tables),
    "latency": Benchmark("from a frame's arrival to its result", latency.run, latency.tables),
    "memory": Benchmark("a million frames, a slow consumer", memory.run, memory.tables),
    "hop": Benchmark("what the parts of a hop cost", hop.run, hop.tables),
    **learning.BENCHMARKS,
    **live.BENCHMARKS,
    "sockets": Benchmark("devices that send over sockets", sockets.run, sockets.tables),
    **clients.BENCHMARKS,
    **soak.BENCHMARKS,
}
ON_CUDA = {
    "throughput": Benchmark("frames/s of stages on one GPU", throughput_cuda.run, throughput_cuda.tables),
    "latency": Benchmark("from a frame's arrival to its result, on a GPU", latency.run, latency.tables),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit status."""
    options = _parser().parse_args(arguments)
    device: str = options.device
    is_cuda = device.partition(":")[0] == "cuda"
    known = ON_CUDA if is_cuda else BENCHMARKS
    names: list[str] = options.names or list(known)
    if unknown := [name for name in names if name not in known]:
        say(f"no benchmark of this name runs on {device}: {', '.join(unknown)}. Choose from {', '.join(known)}.")
        return 2
    if is_cuda and not options.tables and (missing := _missing_gpu(device)):
        say(f"skipped: {missing}")
        return 0
    results: Path = options.results or (ROOT / "out" / "benchmarks" if options.quick else RESULTS)
    readme: Path | None = options.readme or (None if options.quick else ROOT / "README.md")
    status = 0
    for name in names:
        record = f"{name}-cuda" if is_cuda else name
        path = results / f"{record}.json"
        # One that fails, or whose table has no place, does not cost the figures of the others.
        try:
            if not options.tables:
                _measure(known[name], record, Settings(options.quick, device), path)
            text = _text(known[name], path)
            print(f"\n## {record}\n\n{text}\n", flush=True)
            if readme is not None:
                replace_table(readme, record, text)
        except BenchmarkError as error:
            say(f"{record}: {error}")
            status = 1
    return status


def _measure(benchmark: Benchmark, record: str, settings: Settings, path: Path) -> None:
    outcome = benchmark.run(settings)
    report = Report(
        benchmark=record,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.describe(),
        versions=machine.versions(),
        settings={**outcome.settings, "is_quick": settings.is_quick, "device": settings.device},
        facts=outcome.facts,
        rounds=outcome.rounds,
    )
    report.save(path)


def _text(benchmark: Benchmark, path: Path) -> str:
    report = Report.load(path)
    return f"{benchmark.tables(report)}\n\n{provenance(report)}"


def _missing_gpu(device: str) -> str:
    from partime_async.devices import cuda_device_count

    index = int(device.partition(":")[2] or 0)
    found = cuda_device_count()
    return "" if index < found else f"{device} is not there: torch sees {found} CUDA device(s) on this machine."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure, write raw results as JSON, and rewrite the tables of README.md from them.",
        epilog="\n".join(f"{name:11} {benchmark.summary}" for name, benchmark in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; all, if none is named")
    parser.add_argument("--quick", action="store_true", help="only show that they run; write to out/benchmarks")
    parser.add_argument("--tables", action="store_true", help="measure nothing: rewrite the tables from the JSON")
    parser.add_argument("--device", default="cpu", help="where the networks run: cpu or cuda:0; default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    parser.add_argument("--readme", type=Path, help="file whose tables are rewritten; with --quick, none by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
