"""What the benchmark of many clients computes, and that both of its parts run."""

from __future__ import annotations

import pytest

from benchmarks import clients, soak
from benchmarks.clients import fair_shares, jain
from benchmarks.record import Report
from benchmarks.settings import Settings


@pytest.mark.parametrize(
    ("demands", "capacity", "shares"),
    [
        ([10.0, 10.0], 100.0, [10.0, 10.0]),
        ([1e9, 1e9, 1e9], 90.0, [30.0, 30.0, 30.0]),
        ([10.0, 1e9, 50.0, 1e9], 100.0, [10.0, 30.0, 30.0, 30.0]),
        ([1e9, 5.0, 25.0], 60.0, [30.0, 5.0, 25.0]),
        ([], 10.0, []),
    ],
)
def test_fair_shares_leave_nobody_envious(demands: list[float], capacity: float, shares: list[float]) -> None:
    """Small demands are met, and what is spare is divided evenly."""
    assert fair_shares(demands, capacity) == shares


def test_jain_index_is_one_for_equal_shares_and_falls_with_inequality() -> None:
    """With all for one of four it is a quarter."""
    assert jain([0.7, 0.7, 0.7]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0, 0.0]) == 0.0


BENCHMARKS = clients.BENCHMARKS | soak.BENCHMARKS


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_benchmark_of_clients_runs_quickly_and_makes_a_table(name: str) -> None:
    """The figures mean nothing; that they are there does."""
    outcome = BENCHMARKS[name].run(Settings(is_quick=True))
    report = Report(name, "", {}, {}, outcome.settings, outcome.facts, outcome.rounds)
    assert BENCHMARKS[name].tables(report).count("|") > 10
