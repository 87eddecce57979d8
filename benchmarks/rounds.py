"""Interleaved rounds: A B C, A B C, ...: what drifts or disturbs hits all contestants of a round alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.machine import CpuMeter
from benchmarks.record import Round, Sample
from benchmarks.workers import Worker


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure.

    Attributes:
        generations: How many sets of fresh processes: memory layout differs from one to the next.
        rounds: Undisturbed rounds wanted of each.
        extra: Rounds that may be run on top for discarded ones.
        seconds: Of one turn.
        most_foreign_share: A round in which other programs took more than this share of the cores is discarded.
    """

    generations: int
    rounds: int
    extra: int
    seconds: float
    most_foreign_share: float = 0.04

    def settings(self) -> dict[str, str | float]:
        """Return what goes into the record."""
        return {
            "generations": self.generations,
            "rounds_per_generation": self.rounds,
            "extra_rounds": self.extra,
            "turn_s": self.seconds,
            "most_foreign_share": self.most_foreign_share,
        }


def interleave(
    workers: Mapping[str, Worker], pace: Pace, *, group: str, condition: str = "idle", generation: int = 0
) -> list[Round]:
    """Give every contestant a turn, over and over, until enough rounds were undisturbed or none are left.

    Args:
        workers: By contestant: the process it was opened in.
        pace: How many rounds of what length.
        group: For the record.
        condition: For the record.
        generation: For the record.

    Returns:
        Every round, the discarded ones too.

    Raises:
        BenchmarkError: A contestant failed.
    """
    rounds: list[Round] = []
    kept = 0
    while kept < pace.rounds and len(rounds) < pace.rounds + pace.extra:
        samples = {name: _turn(worker, name, pace.seconds) for name, worker in workers.items()}
        disturbance = max((sample.foreign_share or 0.0 for sample in samples.values()), default=0.0)
        is_discarded = disturbance > pace.most_foreign_share
        kept += not is_discarded
        rounds.append(
            Round(group, condition, generation, len(rounds), os.getloadavg()[0], is_discarded, samples),
        )
        say(
            f"  {group}, {condition}, round {len(rounds)}: "
            + (f"discarded, other programs took {disturbance:.0%}" if is_discarded else "done")
        )
    return rounds


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)


def _turn(worker: Worker, name: str, seconds: float) -> Sample:
    meter = CpuMeter()
    measurement = worker.run(name, seconds)
    use = meter.stop()
    return Sample(measurement, use.seconds, use.foreign_share)
