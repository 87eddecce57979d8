"""What a benchmark is told, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.record import Report, Round


@dataclass(frozen=True, slots=True)
class Settings:
    """What a benchmark is told.

    Attributes:
        is_quick: Only show that everything runs; the figures are worth nothing.
        device: Where the networks run.
    """

    is_quick: bool = False
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark hands back; see `Report` for the fields."""

    settings: Mapping[str, str | float]
    rounds: Sequence[Round]
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One of those that `python -m benchmarks` knows.

    Attributes:
        summary: What it measures, in one line.
        run: Measures.
        tables: Makes Markdown of a report.
    """

    summary: str
    run: Callable[[Settings], Outcome]
    tables: Callable[[Report], str]
