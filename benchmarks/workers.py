"""Contestants in processes of their own, told over a pipe when it is their turn.

A process per thread count: OpenMP's and torch's counts stick to a process. The processes stay from round to round, so
that turns can be short and interleaved, and wait on a pipe, which costs nothing, while others have theirs.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import multiprocessing
import traceback
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol, Self

from benchmarks.record import BenchmarkError, Measurement

_PATIENCE_S = 300.0


class Contestant(Protocol):
    """Something to be measured, set up and warm."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Return what is worth knowing about it beside figures."""
        ...

    async def run(self, seconds: float) -> Measurement:
        """Measure for about this long."""
        ...


class Spec(Protocol):
    """How to set up a contestant; travels to the worker process."""

    def open(self) -> AbstractAsyncContextManager[Contestant]:
        """Set it up, and clean up behind it."""
        ...


@dataclass(frozen=True, slots=True)
class _Open:
    name: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class _Run:
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Failure:
    text: str


class Worker:
    """A fresh process; ``with Worker() as worker``. Starts importing at once: make all workers first, then use them.

    Several contestants may be set up in one worker, where thread counts do not matter.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="benchmark worker", daemon=True)
        self._process.start()
        self._is_ready = False
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until the process has imported what it needs and is idle.

        Raises:
            BenchmarkError: It ended instead.
        """
        if not self._is_ready:
            self._receive("a new process")
            self._is_ready = True

    def open(self, name: str, spec: Spec) -> Mapping[str, str]:
        """Set up a contestant under this name and return its facts.

        Raises:
            BenchmarkError: It could not be set up; the text has its traceback.
        """
        facts = self._ask(_Open(name, spec))
        assert isinstance(facts, dict)
        return facts

    def run(self, name: str, seconds: float) -> Measurement:
        """Give a contestant its turn.

        Raises:
            BenchmarkError: It failed; the text has its traceback.
        """
        measurement = self._ask(_Run(name, seconds))
        assert isinstance(measurement, Measurement)
        return measurement

    def _ask(self, request: _Open | _Run) -> object:
        self.wait_until_ready()
        with suppress(OSError):  # receiving says what happened
            self._connection.send(request)
        return self._receive(repr(request.name), 2.0 * request.seconds if isinstance(request, _Run) else 0.0)

    def _receive(self, what: str, seconds: float = 0.0) -> object:
        patience_s = _PATIENCE_S + seconds
        reply: object = _Failure(f"no answer within {patience_s:g} s")
        try:
            if self._connection.poll(patience_s):
                reply = self._connection.recv()
        except (EOFError, OSError) as error:
            reply = _Failure(f"its process ended: {error!r}")
        if isinstance(reply, _Failure):
            raise BenchmarkError(f"{what} failed. What it said:\n{reply.text}")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(timeout=20.0 if error is None else 1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: uvloop's where it is installed, as the library's users are told to."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _serve(connection: Connection) -> None:
    importlib.import_module("partime_async")
    connection.send(None)  # ready
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_session(connection))


async def _session(connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    contestants: dict[str, Contestant] = {}
    async with AsyncExitStack() as stack:
        while True:
            try:
                request = await loop.run_in_executor(None, connection.recv)
            except (EOFError, OSError):
                return
            try:
                if isinstance(request, _Open):
                    contestants[request.name] = await stack.enter_async_context(request.spec.open())
                    connection.send(dict(contestants[request.name].facts))
                else:
                    # What setting up left behind would stop all threads for a tenth of a second, in anybody's turn.
                    gc.collect()
                    connection.send(await contestants[request.name].run(request.seconds))
            except Exception:
                connection.send(_Failure(traceback.format_exc()))
