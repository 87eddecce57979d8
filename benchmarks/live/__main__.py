"""Run the live benchmark for longer, or only some of it: ``python -m benchmarks.live [MODE ...] [--seconds 60]``.

`python -m benchmarks live live-chromium live-ends` does the same with all modes, 20 s a turn, a browser, and all ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.live import modes
from benchmarks.readme import replace_table
from benchmarks.record import BenchmarkError, Report
from benchmarks.rounds import say
from benchmarks.settings import Settings
from benchmarks.summary import provenance

_ROOT = Path(__file__).parents[2]
_NAME = "live"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit status."""
    options = _parser().parse_args(arguments)
    names: list[str] = options.modes or list(modes.MODES)
    if unknown := [name for name in names if name not in modes.MODES]:
        say(f"there is no mode {', '.join(unknown)}. Choose from {', '.join(modes.MODES)}.")
        return 2
    settings = Settings(options.quick)
    seconds: float = options.seconds
    is_whole = set(names) == set(modes.MODES) and not options.quick
    results: Path = options.results or (_ROOT / "benchmarks" / "results" if is_whole else _ROOT / "out" / "benchmarks")
    try:
        outcome = modes.measure(settings, seconds, names)
        report = Report(
            benchmark=_NAME,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine.describe(),
            versions=machine.versions(),
            settings={**outcome.settings, "is_quick": settings.is_quick, "device": settings.device},
            facts=outcome.facts,
            rounds=outcome.rounds,
        )
        report.save(results / f"{_NAME}.json")
        text = f"{modes.tables(report)}\n\n{provenance(report)}"
        print(text, flush=True)
        if is_whole:
            replace_table(options.readme, _NAME, text)
    except BenchmarkError as error:
        say(f"{_NAME}: {error}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live",
        description="Measure live video. All modes together rewrite the table of README.md; some of them do not.",
    )
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"{', '.join(modes.MODES)}; all, if none is named")
    parser.add_argument("--seconds", type=float, default=modes.SECONDS, help="of a turn; default: %(default)g")
    parser.add_argument("--quick", action="store_true", help="only show that they run; write to out/benchmarks")
    parser.add_argument("--results", type=Path, help="folder of the JSON file")
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md", help="file whose table is rewritten")
    return parser


if __name__ == "__main__":
    sys.exit(main())
