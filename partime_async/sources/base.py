"""What every source delivers, and the ground that sources which block a thread stand on."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Protocol, Self

from partime_async.errors import ConfigurationError, SourceError
from partime_async.frame import SourceFrame


class Source(Protocol):
    """What `open_source` gives: frames, by `for` or by `async for`, that can be described and closed."""

    @property
    def frame_rate(self) -> float | None:
        """Frames per second as the source states it; None: unknown or irregular."""

    @property
    def frame_count(self) -> int | None:
        """How many frames one pass gives; None: endless or unknown."""

    def describe(self) -> str:
        """Say in one line what the source is."""

    def close(self) -> None:
        """Give files and devices back; further calls do nothing."""


class SourcePass(Iterator[SourceFrame]):
    """One pass over a blocking source.

    `next` belongs to one thread; `interrupt` and `close` may be called from any other.

    Args:
        frames: Makes the frames; its `finally` gives back what it opened.
        stop: The signal that ends every wait inside `frames`, and then `frames` itself.
    """

    __slots__ = ("__weakref__", "_frames", "_stop")

    def __init__(self, frames: Generator[SourceFrame, None, None], stop: threading.Event) -> None:
        self._frames = frames
        self._stop = stop

    def __next__(self) -> SourceFrame:
        return next(self._frames)

    def interrupt(self) -> None:
        """End a wait for the clock at once, and the pass with its next frame; never blocks."""
        self._stop.set()

    def close(self) -> None:
        """End the pass and give back what it holds open.

        A pass that is at work in another thread gives it back there, when the frame it is busy with is done.
        """
        self._stop.set()
        try:
            self._frames.close()
        except ValueError:  # "generator already executing": in the other thread, which sees the signal
            return


class BlockingSource(ABC):
    """A source whose `next` blocks: on a decoder, a device or the clock. Pull it from a thread of its own.

    Each `iter()` is a pass of its own from the beginning. `close` ends all of them; it may be called from any thread.
    """

    def __init__(self) -> None:
        self._passes: weakref.WeakSet[SourcePass] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    @abstractmethod
    def frame_rate(self) -> float | None:
        """Frames per second as the source states it; None: unknown or irregular."""

    @property
    @abstractmethod
    def frame_count(self) -> int | None:
        """How many frames one pass gives; None: endless or unknown."""

    @abstractmethod
    def describe(self) -> str:
        """Say in one line what the source is."""

    @abstractmethod
    def _frames(self, stop: threading.Event) -> Generator[SourceFrame, None, None]:
        """Make the frames of one pass until `stop` is set."""

    def __iter__(self) -> SourcePass:
        stop = threading.Event()
        one_pass = SourcePass(self._frames(stop), stop)
        with self._lock:
            if self._is_closed:
                raise SourceError(f"{self.describe()} is closed. Open it anew to read it again.")
            self._passes.add(one_pass)
        return one_pass

    def close(self) -> None:
        """End every pass and give files and devices back; further calls do nothing."""
        with self._lock:
            self._is_closed = True
            passes = list(self._passes)
        for one_pass in passes:
            one_pass.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return a picture size (width, height) if it can be one.

    Raises:
        ConfigurationError: It is not a pair of positive numbers; the caller's fault.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigurationError(f"{size!r} is no picture size. Give (width, height) in pixels, both at least 1.")
    return size


def checked_count(what: str, count: int | None) -> int | None:
    """Return a number of frames if it is None or positive.

    Raises:
        ConfigurationError: It is zero or negative; the caller's fault.
    """
    if count is not None and count < 1:
        raise ConfigurationError(f"{what} is {count}, which gives no frame. Give at least 1, or None for all.")
    return count
