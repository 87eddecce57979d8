"""The benchmarks run, record every repeat, discard what was disturbed, and put their tables where they are read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import machine, rounds
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.readme import replace_table
from benchmarks.record import BenchmarkError, Measurement, Report, Round, Sample
from benchmarks.rounds import Pace, interleave
from benchmarks.summary import Spread, figure, percentile, ratio, short
from benchmarks.tally import Tally
from benchmarks.workers import Contestant, Worker
from partime_async.devices import cuda_device_count


@dataclass(frozen=True, slots=True)
class CountingSpec:
    """A contestant that counts its turns, or fails on the second."""

    is_failing: bool = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Start counting."""
        yield _Counting(self.is_failing)


class _Counting:
    def __init__(self, is_failing: bool) -> None:
        self.facts: Mapping[str, str] = {"failing": str(is_failing)}
        self._is_failing = is_failing
        self._turns = 0

    async def run(self, seconds: float) -> Measurement:
        self._turns += 1
        if self._is_failing and self._turns == 2:
            raise ArithmeticError("the second turn")
        return Measurement({"turns": float(self._turns), "seconds": seconds}, {"all": [seconds]})


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all tests of this file that need one: it takes seconds to import what they import."""
    with Worker() as started:
        yield started


def a_round(*, is_discarded: bool = False, **rates: float) -> Round:
    """Return a round in which contestants reached these rates."""
    samples = {name: Sample(Measurement({"rate": rate}), 1.0, 0.0) for name, rate in rates.items()}
    return Round("group", "idle", 0, 0, 0.5, is_discarded, samples)


def a_report(*these: Round) -> Report:
    """Return a report of these rounds."""
    return Report("name", "2024-02-29T12:00:00+00:00", machine.describe(), machine.versions(), {"x": 1.0}, {}, these)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_quick_writes_its_record_and_its_table(name: str, tmp_path: Path) -> None:
    """Every benchmark runs with --quick, writes JSON that can be read back, and fills its place in the README."""
    if name == "live-chromium" and shutil.which("chromium") is None:
        pytest.skip("needs Debian's chromium, which is not installed")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n<!-- benchmark:{name} -->\n<!-- /benchmark -->\nafter\n", encoding="utf-8")
    assert main([name, "--quick", "--results", str(tmp_path), "--readme", str(readme)]) == 0
    report = Report.load(tmp_path / f"{name}.json")
    assert report.settings["is_quick"]
    assert all(sample.measurement.figures for each in report.rounds for sample in each.samples.values())
    filled = readme.read_text(encoding="utf-8")
    assert "\n| --- |" in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")


def test_tables_from_a_record_measure_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --tables a missing record is an error that says what to do, and nothing is run."""
    assert main(["hop", "--tables", "--results", str(tmp_path), "--readme", str(tmp_path / "README.md")]) == 1
    assert "Run the benchmark first" in capsys.readouterr().err


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU, which would be measured")
def test_cuda_benchmark_without_gpu_is_skipped_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Where torch sees no GPU, a benchmark on one ends well and says that it was skipped."""
    assert main(["throughput", "--device", "cuda:0"]) == 0
    assert capsys.readouterr().err == "skipped: cuda:0 is not there: torch sees 0 CUDA device(s) on this machine.\n"


def test_command_with_unknown_benchmark_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no benchmark is refused, with the list of those there are."""
    assert main(["througput"]) == 2
    assert "throughput, scaling, latency, memory, hop" in capsys.readouterr().err


def test_interleave_gives_each_contestant_its_own_turns(worker: Worker) -> None:
    """Contestants are set up once, keep their state from turn to turn, and take turns in order."""
    pace = Pace(generations=1, rounds=2, extra=0, seconds=0.25, most_foreign_share=100.0)
    assert worker.open("a", CountingSpec()) == {"failing": "False"}
    worker.open("b", CountingSpec())
    found = interleave({"a": worker, "b": worker}, pace, group="group")
    assert [[each.figure(name, "turns") for name in each.samples] for each in found] == [[1.0, 1.0], [2.0, 2.0]]
    assert found[0].figure("a", "seconds") == 0.25


def test_worker_with_failing_contestant_tells_its_traceback(worker: Worker) -> None:
    """What a contestant raises comes out with its traceback, and the worker goes on."""
    worker.open("bad", CountingSpec(is_failing=True))
    worker.run("bad", 0.1)
    with pytest.raises(BenchmarkError, match=r"(?s)'bad' failed.*in run.*ArithmeticError: the second turn"):
        worker.run("bad", 0.1)
    assert worker.run("bad", 0.1).figures["turns"] == 3.0


def test_worker_that_ended_is_an_error_and_not_a_wait() -> None:
    """A process that is gone, as after a crash of the network's own code, is told at once."""
    worker = Worker()
    worker._process.kill()
    worker._process.join()
    with worker, pytest.raises(BenchmarkError, match="its process ended"):
        worker.run("a", 0.1)


def test_interleave_disturbed_rounds_are_kept_as_discarded_and_repeated(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round in which other programs took too much is recorded, not counted, and made up for while extra ones last."""
    shares = iter([0.0, 0.5, 0.01, 0.3, 0.3])

    class Meter:
        def stop(self) -> machine.CpuUse:
            return machine.CpuUse(1.0, next(shares))

    monkeypatch.setattr(rounds, "CpuMeter", Meter)
    worker.open("a", CountingSpec())
    found = interleave({"a": worker}, Pace(1, 3, 2, 0.1), group="group")
    assert [each.is_discarded for each in found] == [False, True, False, True, True]


def test_cpu_meter_counts_children_as_own() -> None:
    """The CPU time of a child process, running or ended, is not taken for another program's."""
    before = machine._own_ticks()
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", spin], check=True)
    ticks_per_s = 100
    assert machine._own_ticks() - before >= 0.25 * ticks_per_s
    use = machine.CpuMeter().stop()
    assert use.seconds > 0


def test_report_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    """The raw record survives the file, discarded rounds and unknown CPU use included."""
    unknown = replace(a_round(a=2.0), samples={"a": Sample(Measurement({"x": 1.0}, {"s": [1.0]}), 0.5, None)})
    report = a_report(a_round(a=1.0, is_discarded=True), unknown)
    report.save(tmp_path / "name.json")
    loaded = Report.load(tmp_path / "name.json")
    assert replace(loaded, rounds=tuple(loaded.rounds)) == report


def test_report_with_discarded_rounds_uses_the_others_unless_there_are_none() -> None:
    """Tables are made of undisturbed rounds; where every round was disturbed, of all, and the table is told."""
    good, bad = a_round(a=1.0), a_round(a=2.0, is_discarded=True)
    assert a_report(good, bad).of("group") == [good]
    assert not a_report(good, bad).is_disturbed("group")
    assert a_report(bad, bad).of("group") == [bad, bad]
    assert a_report(bad, bad).is_disturbed("group")


def test_spread_forms_ratios_within_a_round() -> None:
    """A ratio compares neighbours in time; its median is not the ratio of the medians."""
    these = [a_round(ours=2.0, theirs=1.0), a_round(ours=3.0, theirs=1.0), a_round(ours=4.0, theirs=4.0)]
    assert Spread.over(these, ratio("ours", "theirs", "rate")) == Spread(2.0, 1.0, 3.0)
    assert Spread.over(these, figure("ours", "rate")).median == 3.0


@pytest.mark.parametrize(
    ("targets", "cell"),
    [
        ({}, "1.50 (1.00\u20132.00)"),
        ({"at_least": 1.5}, "1.50 (1.00\u20132.00)"),
        ({"at_least": 1.6}, "**1.50 (1.00\u20132.00) missed**"),
    ],
)
def test_spread_cell_marks_a_missed_target(targets: Mapping[str, float], cell: str) -> None:
    """A cell has the median and the extremes, and says so if the median misses the target."""
    assert Spread(1.5, 1.0, 2.0).cell(**targets) == cell


@pytest.mark.parametrize(("number", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (0.123, "0.12"), (-50.0, "-50.0")])
def test_short_numbers_keep_three_digits(number: float, text: str) -> None:
    """Figures are as long as they are good for."""
    assert short(number) == text


def test_percentile_of_nothing_says_that_nothing_was_measured() -> None:
    """A quantile of no frames at all is an error, not a zero."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    with pytest.raises(BenchmarkError, match="no frame came out"):
        percentile([], 0.5)


def test_tally_counts_between_results_after_the_warm_up() -> None:
    """The warm-up does not count, and at least four frames do, however short the time."""
    tally = Tally(0.0, warm_up=2)
    for _ in range(5):
        tally.tick()
        assert not tally.is_done
    tally.tick()
    assert tally.is_done
    assert tally.measurement().figures["frames"] == 4.0


def test_tally_of_a_stream_that_ended_early_is_an_error() -> None:
    """A throughput that was never steady is not reported."""
    tally = Tally(1.0, warm_up=1)
    tally.tick()
    with pytest.raises(BenchmarkError, match="only 0 results"):
        tally.measurement()


def test_readme_table_is_replaced_between_its_own_markers(tmp_path: Path) -> None:
    """Only the named table changes, whatever it holds; a second time changes nothing."""
    path = tmp_path / "README.md"
    path.write_text(
        "a\n<!-- benchmark:x -->\nold\n<!-- /benchmark -->\nb\n<!-- benchmark:y -->\n<!-- /benchmark -->\n", "utf-8"
    )
    replace_table(path, "x", r"| \1 |")
    replace_table(path, "x", r"| \1 |")
    assert path.read_text("utf-8") == (
        "a\n<!-- benchmark:x -->\n| \\1 |\n<!-- /benchmark -->\nb\n<!-- benchmark:y -->\n<!-- /benchmark -->\n"
    )


def test_readme_without_markers_is_an_error_that_names_them(tmp_path: Path) -> None:
    """A table without a place is not put anywhere; the error has the lines to write."""
    with pytest.raises(BenchmarkError, match="<!-- benchmark:x --> and <!-- /benchmark -->"):
        replace_table(tmp_path / "README.md", "x", "table")
