"""Dividing layers over stages: exact, against every division there is."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from partime_async.errors import PartitionError
from partime_async.partition.balance import balance, check_balance
from partime_async.partition.layers import LayerChain, chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Problem = tuple[list[list[float]], list[list[float]], frozenset[int]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw costs that add up without rounding, so that a tie is a tie; some layers cannot run on some stages."""
    layers, stages = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    cost = st.integers(0, 6).map(float) | st.just(math.inf)
    costs = draw(st.lists(st.lists(cost, min_size=layers, max_size=layers), min_size=stages, max_size=stages))
    transfer = st.integers(0, 3).map(float)
    transfers = draw(st.lists(st.lists(transfer, min_size=layers, max_size=layers), min_size=stages, max_size=stages))
    return costs, transfers, draw(st.frozensets(st.integers(0, layers)))


def divisions(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Yield every division of the layers."""
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        yield tuple(stop - start for start, stop in itertools.pairwise((0, *cuts, layers)))


def stage_costs(sizes: Sequence[int], costs: list[list[float]], transfers: list[list[float]]) -> list[float]:
    """Return what each stage costs."""
    starts = [0, *itertools.accumulate(sizes)]
    return [
        transfers[stage][start] + sum(costs[stage][start:stop])
        for stage, (start, stop) in enumerate(itertools.pairwise(starts))
    ]


@given(problems())
def test_balance_of_any_costs_equals_brute_force(problem: Problem) -> None:
    """The slowest stage, and then the sum, are the least among all divisions; an error means that there is none."""
    costs, transfers, forbidden = problem
    results = []
    for sizes in divisions(len(costs[0]), len(costs)):
        if not forbidden & set(itertools.accumulate(sizes[:-1])):
            spent = stage_costs(sizes, costs, transfers)
            results.append((max(spent), sum(spent)))
    best = min(results, default=(math.inf, math.inf))
    if math.isinf(best[0]):
        with pytest.raises(PartitionError):
            balance(costs, transfers, forbidden_cuts=forbidden)
        return
    sizes = balance(costs, transfers, forbidden_cuts=forbidden)
    assert sum(sizes) == len(costs[0])
    assert min(sizes) >= 1
    assert not forbidden & set(itertools.accumulate(sizes[:-1]))
    spent = stage_costs(sizes, costs, transfers)
    assert (max(spent), sum(spent)) == best


def test_balance_of_equal_layers_is_even() -> None:
    """Equal layers are divided evenly."""
    assert balance([[1.0] * 12] * 4, [[0.0] * 12] * 4) == (3, 3, 3, 3)


def test_balance_of_a_deep_net_over_many_stages_is_even() -> None:
    """600 equal layers on 16 stages come out within one layer of the mean."""
    assert set(balance([[1.0] * 600] * 16, [[0.0] * 600] * 16)) == {37, 38}


@pytest.mark.parametrize(
    ("stages", "layers", "forbidden", "told"),
    [
        (3, 2, (), r"3 stages cannot share 2 layer\(s\). Use at most 2 stage"),
        (3, 4, (1, 3), r"3 stages need 2 cuts, and the 4 layers may be cut in 1 place\(s\) only. Use at most 2 stage"),
        (3, 2, (1,), "Use at most 1 stage"),
        (0, 0, (), "at least one of each"),
        (1, 0, (), "at least one of each"),
    ],
)
def test_balance_that_cannot_be_raises_and_says_how_many_stages_can(
    stages: int, layers: int, forbidden: tuple[int, ...], told: str
) -> None:
    """Too many stages for the layers, or for the cuts allowed, are refused with the number that works."""
    rows = [[1.0] * layers] * stages
    with pytest.raises(PartitionError, match=told):
        balance(rows, rows, forbidden_cuts=frozenset(forbidden))


@pytest.mark.parametrize(
    ("costs", "transfers", "told"),
    [
        ([[1.0, 2.0], [1.0]], [[0.0, 0.0]] * 2, r"costs has rows of \[2, 1\] entries"),
        ([[1.0, 2.0]], [[0.0]], r"transfers has rows of \[1\] entries"),
        ([[1.0, math.nan]], [[0.0, 0.0]], "costs has an entry that is negative or not a number"),
        ([[1.0, 1.0]], [[0.0, -1.0]], "transfers has an entry"),
        ([[1.0, math.inf]], [[0.0, 0.0]], "every division leaves some layer where its cost is infinite"),
    ],
)
def test_balance_of_costs_that_make_no_sense_raises(
    costs: list[list[float]], transfers: list[list[float]], told: str
) -> None:
    """Rows that do not fit, and costs that are no seconds, are refused."""
    with pytest.raises(PartitionError, match=told):
        balance(costs, transfers)


def inplace_chain() -> LayerChain:
    """Build 7 layers that must not be cut before layers 2 and 3."""
    layers = [nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(inplace=True), nn.ReLU(inplace=True)]
    return chain(nn.Sequential(*layers, *(nn.Linear(2, 2) for _ in range(3))), torch.ones(1, 2))


def test_check_balance_of_a_good_balance_returns_it() -> None:
    """A balance that fits comes back as a tuple."""
    assert check_balance([1, 3, 3], inplace_chain()) == (1, 3, 3)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([], "leaves a stage empty"),
        ([7, 0], r"balance \[7, 0\] leaves a stage empty"),
        ([4, 4], "adds up to 8 layers, and the module has 7. Change it by -1"),
        ([2, 2], r"adds up to 4 layers, and the module has 7. Change it by \+3"),
        ([3.5, 3.5], "3.5 in a balance is no number of layers. Give whole numbers"),
        ([2, 5], r"before layer 2, '2', .* layer '2' writes in place .* nearest that will do is \[1, 6\]"),
        ([3, 1, 3], r"before layer 3, '3', .* The nearest that will do is \[4, 1, 2\]"),
        ([1, 1, 1, 1, 1, 1, 1], r"Use at most 5 stage\(s\)"),
    ],
)
def test_check_balance_that_does_not_fit_raises_with_the_nearest_that_does(sizes: list[int], told: str) -> None:
    """An empty stage, a wrong sum and a forbidden cut are refused with numbers, reason and remedy."""
    with pytest.raises(PartitionError, match=told):
        check_balance(sizes, inplace_chain())
