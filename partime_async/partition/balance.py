"""Divide a chain of layers over stages: which consecutive layers each stage gets."""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING

import numpy as np

from partime_async.errors import PartitionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from partime_async.partition.layers import LayerChain


def balance(
    costs: Sequence[Sequence[float]],
    transfers: Sequence[Sequence[float]],
    *,
    forbidden_cuts: AbstractSet[int] = frozenset(),
) -> tuple[int, ...]:
    """Divide n layers over k stages in their order, with the slowest stage as fast as it can be.

    Exact. Among the divisions with the same slowest stage it is the one with the smallest sum over the stages, and
    among those whose sums agree to a billionth, the most even. Every stage gets at least one layer.

    Args:
        costs: `costs[k][i]`: seconds of layer i on the device of stage k; infinite where it cannot run.
        transfers: `transfers[k][c]`: seconds to bring the values at cut c, 0 to n - 1, into stage k, which pays them.
        forbidden_cuts: Cuts that no stage may begin at (cut c lies before layer c).

    Returns:
        The number of layers of each stage.

    Raises:
        PartitionError: No such division exists, or the arguments do not fit each other; the caller is at fault.
    """
    layers = len(costs[0]) if len(costs) else 0
    times, brings = _matrix(costs, len(costs), layers, "costs"), _matrix(transfers, len(costs), layers, "transfers")
    is_start = np.array([cut not in forbidden_cuts for cut in range(layers)])
    _check_count(len(costs), layers, int(is_start[1:].sum()))
    bound, _ = _fold(_spans(times, brings, is_start), np.maximum)
    if not np.isfinite(bound):
        raise PartitionError("every division leaves some layer where its cost is infinite. Give it a stage to run on.")
    # The smallest sum is sought among all divisions within the bound, not on the way to it: a stage that is not the
    # slowest may be slower than it need be, if that makes another one cheaper.
    _, starts = _fold((_priced(spans, bound) for spans in _spans(times, brings, is_start)), np.add)
    return tuple(stop - start for start, stop in itertools.pairwise([*starts, layers]))


def check_balance(sizes: Sequence[int], chain: LayerChain) -> tuple[int, ...]:
    """Check a balance that the user gave and return it.

    Args:
        sizes: The number of layers of each stage.
        chain: The layers.

    Raises:
        PartitionError: It does not fit the layers, or it has a cut that the chain forbids; the text then names the
            nearest balance that will do.
    """
    checked = [_whole_number(size) for size in sizes]
    if not checked or min(checked) < 1:
        raise PartitionError(f"balance {checked} leaves a stage empty. Give every stage at least one layer.")
    if sum(checked) != len(chain):
        raise PartitionError(
            f"balance {checked} adds up to {sum(checked)} layers, and the module has {len(chain)}. "
            f"Change it by {len(chain) - sum(checked):+d}."
        )
    cuts = list(itertools.accumulate(checked[:-1]))
    for cut in cuts:
        if cut in chain.forbidden_cuts:
            raise PartitionError(
                f"balance {checked} cuts before layer {cut}, {chain.names[cut]!r}, where it must not: "
                f"{chain.cut_reason(cut)}. {_remedy(cuts, chain)}"
            )
    return tuple(checked)


def _whole_number(size: int) -> int:
    try:
        return operator.index(size)
    except TypeError as error:
        raise PartitionError(f"{size!r} in a balance is no number of layers. Give whole numbers.") from error


def _remedy(cuts: Sequence[int], chain: LayerChain) -> str:
    # With layers that cost nothing, and entering stage k priced at how far its first layer is from the one wished for,
    # the best division is the nearest one.
    distances = [[float(abs(layer - wish)) for layer in range(len(chain))] for wish in (0, *cuts)]
    free = [[0.0] * len(chain)] * len(distances)
    try:
        nearest = balance(free, distances, forbidden_cuts=chain.forbidden_cuts)
    except PartitionError as error:
        return str(error)
    return f"The nearest that will do is {list(nearest)}."


def _matrix(rows: Sequence[Sequence[float]], stages: int, layers: int, name: str) -> NDArray[np.float64]:
    lengths = [len(row) for row in rows]
    if layers < 1 or lengths != [layers] * stages:
        raise PartitionError(
            f"{name} has rows of {lengths} entries, for {stages} stage(s) of {layers} layer(s). "
            "Give one row for each stage, with one entry for each layer, and at least one of each."
        )
    matrix = np.array(rows, dtype=np.float64)
    if np.isnan(matrix).any() or (matrix < 0).any():
        raise PartitionError(f"{name} has an entry that is negative or not a number. Give seconds.")
    return matrix


def _check_count(stages: int, layers: int, cuts: int) -> None:
    if stages > layers:
        raise PartitionError(
            f"{stages} stages cannot share {layers} layer(s). Use at most {min(layers, cuts + 1)} stage(s)."
        )
    if stages > cuts + 1:
        raise PartitionError(
            f"{stages} stages need {stages - 1} cuts, and the {layers} layers may be cut in {cuts} place(s) only. "
            f"Use at most {cuts + 1} stage(s)."
        )


def _fold(stages: Iterable[NDArray[np.float64]], combine: np.ufunc) -> tuple[float, list[int]]:
    """Find the division with the least combined cost of its stages.

    `best[b]` is the least cost of the first b layers on the stages so far; it is extended stage by stage. The work is
    quadratic in the layers and linear in the stages: 600 layers on 16 stages take about a fifth of a second.

    Returns:
        The cost, infinite if there is no division, and the first layer of each stage.
    """
    best = np.zeros(1)
    choices: list[NDArray[np.intp]] = []
    for spans in stages:
        if not choices:
            best = np.array([0.0] + [np.inf] * len(spans))
        totals = combine(best[:-1, None], spans)
        choices.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    starts, stop = [], -1
    for choice in reversed(choices):
        stop = int(choice[stop])
        starts.append(stop)
    return float(best[-1]), starts[::-1]


def _priced(spans: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Return the costs within the bound, with the least bit more for the larger ones, so that even divisions win."""
    unevenness = 1e-9 / bound if bound else 0.0
    return np.where(spans <= bound, spans + unevenness * np.where(spans <= bound, spans, 0.0) ** 2, np.inf)


def _spans(
    times: NDArray[np.float64], brings: NDArray[np.float64], is_start: NDArray[np.bool_]
) -> Iterator[NDArray[np.float64]]:
    """Yield for each stage the cost of layers a to b - 1 at [a, b], infinite where that is no partition."""
    layers = times.shape[1]
    is_empty = np.tri(layers, layers + 1, dtype=bool)
    for stage, (row, bring) in enumerate(zip(times, brings, strict=True)):
        is_endless = np.isinf(row)
        until = np.concatenate([[0.0], np.cumsum(np.where(is_endless, 0.0, row))])
        endless = np.concatenate([[0], np.cumsum(is_endless)])
        spans = until[None, :] - until[:-1, None] + bring[:, None]
        spans[is_empty | (endless[None, :] > endless[:-1, None])] = np.inf
        spans[~is_start if stage else np.arange(layers) > 0] = np.inf
        yield spans
