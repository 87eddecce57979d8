"""The raw record of a benchmark: every repeat, kept as JSON; all tables are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


class BenchmarkError(RuntimeError):
    """A benchmark that could not be run, or a record that does not hold what a table needs."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a contestant found out in one go.

    Attributes:
        figures: By name; names carry their units.
        series: Figures sampled along the way.
    """

    figures: Mapping[str, float]
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement, and what the machine did meanwhile; see `machine.CpuUse`."""

    measurement: Measurement
    seconds: float
    foreign_share: float | None


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of all contestants of a group.

    Attributes:
        group: What they all do, for instance the network they run.
        condition: What the machine did besides, on purpose.
        generation: Number of the set of processes, from 0.
        number: From 0, within the generation.
        load_average: Of the last minute, at the end.
        is_discarded: Whether other programs took too much; the round then counts for nothing.
        samples: By contestant.
    """

    group: str
    condition: str
    generation: int
    number: int
    load_average: float
    is_discarded: bool
    samples: Mapping[str, Sample]

    def figure(self, contestant: str, name: str) -> float:
        """Return one figure.

        Raises:
            BenchmarkError: The contestant did not measure it.
        """
        sample = self.samples.get(contestant)
        if sample is None or name not in sample.measurement.figures:
            raise BenchmarkError(f"{self.group} has no {name!r} of {contestant!r}. Run the benchmark again.")
        return sample.measurement.figures[name]


@dataclass(frozen=True, slots=True)
class Report:
    """All that one benchmark found.

    Attributes:
        benchmark: Its name.
        date: When it ended, ISO 8601, UTC.
        machine: See `machine.describe`.
        versions: See `machine.versions`.
        settings: What it was run with.
        facts: By group and contestant: what is worth knowing beside figures, such as the plan chosen.
        rounds: Every one, the discarded ones too.
    """

    benchmark: str
    date: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    settings: Mapping[str, str | float]
    facts: Mapping[str, Mapping[str, str]]
    rounds: Sequence[Round]

    @property
    def groups(self) -> list[str]:
        """The groups, in the order they were measured."""
        return list(dict.fromkeys(each.group for each in self.rounds))

    def of(self, group: str, condition: str = "idle") -> list[Round]:
        """Return the rounds that count: the undisturbed ones of a group, or all of them if every one was disturbed."""
        rounds = [each for each in self.rounds if (each.group, each.condition) == (group, condition)]
        return [each for each in rounds if not each.is_discarded] or rounds

    def is_disturbed(self, group: str, condition: str = "idle") -> bool:
        """Tell whether `of` had to fall back on disturbed rounds."""
        return any(each.is_discarded for each in self.of(group, condition))

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a report.

        Raises:
            BenchmarkError: There is none, or it is not one.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rounds = [Round(**{**each, "samples": _samples(each["samples"])}) for each in content["rounds"]]
            return cls(**{**content, "rounds": rounds})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{path} holds no results: {error}. Run the benchmark first.") from error


def _samples(content: Mapping[str, Mapping[str, object]]) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for name, sample in content.items():
        measurement, seconds, foreign = sample["measurement"], sample["seconds"], sample["foreign_share"]
        assert isinstance(measurement, dict)
        assert isinstance(seconds, float)
        assert foreign is None or isinstance(foreign, float)
        samples[name] = Sample(Measurement(**measurement), seconds, foreign)
    return samples
