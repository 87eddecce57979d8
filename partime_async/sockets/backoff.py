"""How long to wait before a connection is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next try: twice as long each time, a random part less.

    A few lines of our own and not `stamina`: a retry there ends when connecting succeeds, and a server that takes
    connections and drops them would be called a thousand times a second. Here `reset` is called when something came.

    Source: "equal jitter" of Exponential Backoff And Jitter, AWS Architecture Blog, 2015.

    Attributes:
        first_s: The first wait, at most.
        longest_s: The longest.
        draw: Gives a number from 0 to 1.
    """

    first_s: float = 0.1
    longest_s: float = 30.0
    draw: Callable[[], float] = field(default=random.random, repr=False)
    tries: int = 0

    def next_s(self) -> float:
        """Return how long to wait now."""
        # Bounded before it is raised to a power: 2**5000 is no float.
        whole = min(self.longest_s, self.first_s * 2.0 ** min(self.tries, 60))
        self.tries += 1
        return whole * (0.5 + 0.5 * self.draw())

    def reset(self) -> None:
        """Begin anew: the connection was of use."""
        self.tries = 0
