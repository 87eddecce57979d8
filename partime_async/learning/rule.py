"""Update rules: which gradient meets which activations and weights, as data.

Stage h of N handles the admitted frames t = 0, 1, 2, ... as events, each in this order: forward of frame t with its
current weights W_h(t); the output leaves; then at most one backward and one optimiser step. G_h(t) is the gradient of
its input that stage h emits at event t. With `lag` L frames per hop and d_h = L (N - 1 - h), the backward at event t
runs

    graph      through        with weights         from the gradient    which is of the loss of
    --------   ------------   ------------------   ------------------   -----------------------
    current    frame t        W_h(t)               G_{h+1}(t - L)       frame t - d_h
    stash      frame t - d_h  W_h(t - d_h), kept   G_{h+1}(t - L)       frame t - d_h
    replay     frame t - d_h  W_h(t), done again   G_{h+1}(t - L)       frame t - d_h

and all three are the ordinary training loop for L = 0. The last stage takes the gradient of the loss itself. With a
label delay D the last stage's loss is that of frame t - D, and every d_h is larger by D.

A gradient may not exist: before the start, without a target, for a frame that failed in a stage that it has to go
through, while learning is frozen. It travels as an explicit none: no backward pass, no optimiser step. When learning is
frozen or thawed, or weights are replaced, every frame before that boundary has taught what it could: a stage behind the
boundary discards gradients of their losses.

Time has no part in this; where the network is cut does, for it decides how late each layer's gradient is.

Source: PARTIME (arXiv 2210.09147) and Sideways (arXiv 2001.06232) for `current`, PipeDream (arXiv 1806.03377) for
`stash`, Features Replay (arXiv 1807.04511) for `replay`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from partime_async.errors import ConfigurationError


class Graph(StrEnum):
    """Which forward pass a late gradient goes back through."""

    CURRENT = "current"
    """That of the newest frame: nothing is kept, and the gradient belongs to an older frame; needs a smooth stream."""
    STASH = "stash"
    """That of the gradient's own frame, kept with the weights it used: the exact gradient, only late."""
    REPLAY = "replay"
    """That of the gradient's own frame, done again with the weights of now: only the input is kept."""


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """Which gradient meets which activations and weights; chosen once, never while running.

    Args:
        graph: ``current``, ``stash`` or ``replay``; see `Graph`.
        lag: Gradient delay in frames per hop between two stages, 0 or more. 0 is an ordinary training loop, without
            overlap; 1 learns better, 2 hides transfers.

    Raises:
        ConfigurationError: An unknown graph or a negative lag.
    """

    graph: Graph
    lag: int

    def __init__(self, graph: str, lag: int) -> None:
        if graph not in tuple(Graph):
            known = ", ".join(repr(known.value) for known in Graph)
            raise ConfigurationError(f"unknown graph {graph!r}. Use one of {known}.")
        if isinstance(lag, bool) or not isinstance(lag, int) or lag < 0:
            raise ConfigurationError(f"lag is {lag!r}. Pass a whole number of frames per hop, 0 or more.")
        object.__setattr__(self, "graph", Graph(graph))
        object.__setattr__(self, "lag", lag)

    def delay(self, stage: int, stages: int) -> int:
        """Return d_h: by how many frames the loss that a stage learns from is older than its newest frame."""
        return self.lag * (stages - 1 - stage)

    def __str__(self) -> str:
        return "exact" if self.lag == 0 else f"{self.graph}, lag {self.lag}"
