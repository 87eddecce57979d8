"""Streams that run late, and memory that knows who touched it: the machine below a GPU double.

What is launched on a stream is run when somebody waits for an event: one step of a randomly chosen stream at a time, so
that streams run as far apart as their events allow. Memory comes from a pool per stream, which gives a freed block to
the next allocation at once, as PyTorch's allocator does.

Each step carries a vector clock, made of the order of its stream, of the events its stream waited for, and of what the
host knew when it launched it (the host's threads count as one). Two accesses to a block, one of them a write, that no
clock orders are a race, whether or not it did harm this time; `races` lists them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

_HOST = 0
_GRAIN = 512
Clock: TypeAlias = dict[int, int]


def _join(clock: Clock, other: Clock) -> None:
    for actor, at in other.items():
        clock[actor] = max(clock.get(actor, 0), at)


class Block:
    """Memory, and who touched it last."""

    def __init__(self, label: str, size: int) -> None:
        self.label = label
        self.memory = torch.zeros(size, dtype=torch.uint8)
        self._write: tuple[int, int, str] | None = None
        self._reads: dict[int, tuple[int, str]] = {}

    def touch(self, actor: int, clock: Clock, what: str, *, is_write: bool) -> list[str]:
        """Note an access, and return the races it is in."""
        before = [self._write] if self._write is not None else []
        if is_write:
            before += [(reader, at, by) for reader, (at, by) in self._reads.items()]
        races = [
            f"{self.label}: {what} is not ordered after {by}" for other, at, by in before if clock.get(other, 0) < at
        ]
        if is_write:
            self._write, self._reads = (actor, clock[actor], what), {}
        else:
            self._reads[actor] = (clock[actor], what)
        return races


class Lease:
    """What the tensors that share a block hold; the block goes back to its pool with the last of them."""

    def __init__(self, block: Block, pool: list[Block]) -> None:
        self.block = block
        self._pool = pool

    def __del__(self) -> None:
        self._pool.append(self.block)


class MachineEvent:
    """A point in a stream."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.passed_at: float | None = None


class MachineStream:
    """A queue of steps that have been launched and not run, and a pool of memory."""

    def __init__(self, actor: int, index: int) -> None:
        self.actor = actor
        self.index = index
        self.clock: Clock = {}
        self.queue: deque[Callable[[], None] | MachineEvent | tuple[MachineEvent]] = deque()
        self.pool: list[Block] = []

    @property
    def has_work(self) -> bool:
        """Whether steps are pending that touch memory."""
        return any(callable(step) for step in self.queue)

    @property
    def can_run(self) -> bool:
        """Whether the next step waits for no event."""
        head = self.queue[0] if self.queue else None
        return head is not None and not (isinstance(head, tuple) and head[0].passed_at is None)


class Machine:
    """Any number of streams.

    Args:
        seed: Of the choice which stream goes on.
        eagerness: Chance that a launch lets some stream go on; at 0.0, nothing is run before somebody waits.
    """

    def __init__(self, *, seed: int, eagerness: float) -> None:
        self.races: list[str] = []
        self.streams: list[MachineStream] = []
        self.fault: BaseException | None = None
        self._random = random.Random(seed)
        self._eagerness = eagerness
        self._lock = threading.RLock()
        self._may_run = threading.Event()
        self._may_run.set()
        self._host: Clock = {}

    def new_stream(self, index: int) -> MachineStream:
        """Add a stream."""
        with self._lock:
            stream = MachineStream(len(self.streams) + 1, index)
            self.streams.append(stream)
            return stream

    def allocate(self, stream: MachineStream, size: int) -> Lease:
        """Take memory of the stream's: the block that was freed last, if one fits."""
        size = max(-(-size // _GRAIN), 1) * _GRAIN
        with self._lock:
            fitting = [block for block in stream.pool if block.memory.numel() == size]
            if fitting:
                stream.pool.remove(fitting[-1])
            block = fitting[-1] if fitting else Block(f"cuda:{stream.index} pool {stream.actor}", size)
        return Lease(block, stream.pool)

    def launch(
        self,
        stream: MachineStream,
        label: str,
        compute: Callable[[], None],
        *,
        reads: Iterable[Block],
        writes: Iterable[Block],
    ) -> None:
        """Put a step on a stream."""
        with self._lock:
            self._raise_fault()
            _join(stream.clock, self._host)
            self._touch(stream.actor, stream.clock, f"{label} on stream {stream.actor}", reads, writes)
            stream.queue.append(compute)
            while self._may_run.is_set() and self._random.random() < self._eagerness and self._advance():
                pass

    def touch_on_host(self, label: str, *, reads: Iterable[Block], writes: Iterable[Block]) -> None:
        """Note what the host does to memory that devices can reach."""
        with self._lock:
            self._touch(_HOST, self._host, f"{label} on the host", reads, writes)

    def record(self, stream: MachineStream) -> MachineEvent:
        """Put an event on a stream."""
        with self._lock:
            self._raise_fault()
            event = MachineEvent(dict(stream.clock))
            stream.queue.append(event)
            return event

    def wait(self, stream: MachineStream, event: MachineEvent) -> None:
        """Put a wait on a stream."""
        with self._lock:
            self._raise_fault()
            _join(stream.clock, event.clock)
            stream.queue.append((event,))

    def synchronize(self, event: MachineEvent) -> None:
        """Run steps until the event is passed, but nothing while the machine is held."""
        if threading.current_thread().name.endswith("launcher"):
            self.release()  # who launches cannot wait for the end of a hold
        self._may_run.wait()
        while not self._has_passed(event):
            pass

    def hold(self) -> None:
        """Run nothing until `release`, or until a launcher waits for something."""
        self._may_run.clear()

    def release(self) -> None:
        """Let waiters run steps again."""
        self._may_run.set()

    def _touch(self, actor: int, clock: Clock, what: str, reads: Iterable[Block], writes: Iterable[Block]) -> None:
        clock[actor] = clock.get(actor, 0) + 1
        for block in reads:
            self.races += block.touch(actor, clock, what, is_write=False)
        for block in writes:
            self.races += block.touch(actor, clock, what, is_write=True)

    def _has_passed(self, event: MachineEvent) -> bool:
        with self._lock:
            self._raise_fault()
            if event.passed_at is not None:
                _join(self._host, event.clock)
                return True
            assert self._advance(), "the device hangs: every stream waits for an event that is never passed"
            return False

    def _advance(self) -> bool:
        streams = [stream for stream in self.streams if stream.can_run]
        if not streams:
            return False
        step = self._random.choice(streams).queue.popleft()
        if isinstance(step, MachineEvent):
            step.passed_at = time.perf_counter()
        elif not isinstance(step, tuple):
            try:
                with torch.no_grad():
                    step()
            except Exception as error:
                self.fault = error
        return True

    def _raise_fault(self) -> None:
        if self.fault is not None:
            raise RuntimeError("CUDA error: device-side assert triggered") from self.fault
