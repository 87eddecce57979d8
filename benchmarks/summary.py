"""From raw rounds to the cells of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.record import BenchmarkError, Report, Round


def figure(contestant: str, name: str) -> Callable[[Round], float]:
    """Return how to find this figure of a contestant in a round."""
    return lambda each: each.figure(contestant, name)


def ratio(contestant: str, other: str, name: str) -> Callable[[Round], float]:
    """Return how to compare the same figure of two contestants within a round."""
    return lambda each: each.figure(contestant, name) / each.figure(other, name)


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds, and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, rounds: Sequence[Round], figure: Callable[[Round], float]) -> Spread:
        """Form a figure in each round, and summarise: a ratio is one of things measured next to each other.

        Raises:
            BenchmarkError: There are no rounds.
        """
        values = sorted(map(figure, rounds))
        if not values:
            raise BenchmarkError("a table needs a round that was never run. Run the benchmark again.")
        return cls(median(values), values[0], values[-1])

    def cell(self, *, at_least: float | None = None, at_most: float | None = None) -> str:
        """Return the text of a cell: ``1.04 (0.98-1.10)``; a target that was missed is marked.

        Args:
            at_least: The median must not be below.
            at_most: The median must not be above.
        """
        text = f"{short(self.median)} ({short(self.low)}–{short(self.high)})"  # noqa: RUF001 - it is a range
        is_missed = (at_least is not None and self.median < at_least) or (at_most is not None and self.median > at_most)
        return f"**{text} missed**" if is_missed else text


def short(number: float) -> str:
    """Return a number with three digits that count, as far as they are behind the point."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed; the nearest rank.

    Raises:
        BenchmarkError: There are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise BenchmarkError("nothing was measured: no frame came out. Give the benchmark more time.")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ruler, *rows])


def provenance(report: Report) -> str:
    """Return where, when and with what a report was made, in one line under its table."""
    machine, versions, rounds = report.machine, report.versions, report.rounds
    discarded = sum(each.is_discarded for each in rounds)
    how = (
        f"Median (lowest–highest) of interleaved rounds; {discarded} of {len(rounds)} rounds discarded because other "  # noqa: RUF001
        "programs ran."
        if len(rounds) > 1
        else "One run."
    )
    loop = "uvloop " + versions["uvloop"] if versions["uvloop"] != "none" else "asyncio"
    return (
        f"<sub>{machine['cores']} cores of {machine['processor']}, {machine['system']}, Python {versions['python']}, "
        f"torch {versions['torch']}, {loop}, {report.date[:10]}. {how} "
        f"Raw: benchmarks/results/{report.benchmark}.json.</sub>"
    )


def label(report: Report, group: str, condition: str = "idle") -> str:
    """Return a group's name for a table, marked if all its rounds were disturbed."""
    return f"{group} (disturbed)" if report.is_disturbed(group, condition) else group
