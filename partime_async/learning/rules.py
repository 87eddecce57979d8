"""The update rules that have a name."""

from __future__ import annotations

from partime_async.learning.rule import Graph, UpdateRule


def exact() -> UpdateRule:
    """Return the ordinary training loop: stages wait for each other, and nothing overlaps."""
    return UpdateRule(Graph.STASH, 0)


def pipedream() -> UpdateRule:
    """Return the default: exact gradients at the weights that predicted, a frame late per hop (arXiv 1806.03377)."""
    return UpdateRule(Graph.STASH, 1)


def partime() -> UpdateRule:
    """Return PARTIME's rule, also known as Sideways: newest activations, gradients two frames late per hop."""
    return UpdateRule(Graph.CURRENT, 2)


def replay() -> UpdateRule:
    """Return Features Replay (arXiv 1807.04511): a frame late per hop, forward done again instead of kept."""
    return UpdateRule(Graph.REPLAY, 1)


NAMES = {"exact": exact, "pipedream": pipedream, "partime": partime, "replay": replay}
"""By the names the command line takes."""
