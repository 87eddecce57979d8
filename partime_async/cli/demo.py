"""`partime-async demo`: a page on which a network learns in front of your eyes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import torch

from partime_async.cli.interrupt import Interrupt
from partime_async.cli.options import LoopKind
from partime_async.cli.reach import Reach
from partime_async.cli.run import loop_factory
from partime_async.cli.serve import logging_to_stderr
from partime_async.offload import in_thread
from partime_async.serve import ClientLimits, Server, make_app
from partime_async.serve.demo import PredictService, TeachableService, predicting_recipe, teachable_recipe
from partime_async.serve.demo.page import PAGE

_PATIENCE_S = 1.7
"""Seconds until a demo that is told to stop is cut off."""

_LEAVE_S = 0.5
"""Seconds for a browser's connection to be closed in order."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `partime-async demo` was told.

    Attributes:
        reach: Where the page is to be found; by default on this machine only.
        opens_browser: Whether the page is opened right away.
        devices: Of the networks' stages in turn.
        seed: Of the networks' first weights.
        is_verbose: Whether what happens is written to stderr, a line each.
    """

    reach: Reach
    opens_browser: bool
    devices: tuple[str, ...] = ("cpu",)
    seed: int = 0
    is_verbose: bool = False


def demo(options: DemoOptions, *, loop: LoopKind | None = None, is_json: bool = False) -> int:
    """Serve the page until Ctrl-C or SIGTERM, and return the exit code: 0 then.

    Raises:
        PartimeError: It cannot be served as asked.
    """
    interrupt = Interrupt()
    torch.manual_seed(options.seed)
    patience = threading.Timer(_PATIENCE_S, _cut_off)
    patience.daemon = True
    with (
        logging_to_stderr(is_json=is_json) if options.is_verbose else nullcontext(),
        # Behind the runner's end: it waits for the threads on which aiortc encodes.
        _ended(patience),
        asyncio.Runner(loop_factory=loop_factory(loop)) as runner,
        suppress(asyncio.CancelledError),
    ):
        runner.run(_demo(options, interrupt, patience, is_json=is_json))
    return 0


@contextmanager
def _ended(patience: threading.Timer) -> Iterator[None]:
    try:
        yield
    finally:
        patience.cancel()


async def _demo(options: DemoOptions, interrupt: Interrupt, patience: threading.Timer, *, is_json: bool) -> None:
    with interrupt:
        reach = options.reach
        access = await in_thread(reach.access, name="partime token")
        tls = await in_thread(reach.tls, name="partime certificate")
        ice = await in_thread(reach.ice, name="partime ice")
        services = {
            "teach": TeachableService(teachable_recipe(options.devices)),
            "predict": PredictService(predicting_recipe(options.devices)),
        }
        limits = ClientLimits(leave_s=_LEAVE_S)
        app = make_app(services, access=access, limits=limits, ice=ice, page=PAGE)
        stop = asyncio.Event()
        async with Server(app, host=reach.host, port=reach.port, tls=tls) as server:
            interrupt.when(stop.set)
            _tell(server.url, reach, is_json=is_json)
            if options.opens_browser:
                # On a thread nobody waits for: some browsers stay in the call for as long as they run.
                opening = partial(webbrowser.open, server.url)
                threading.Thread(target=opening, name="demo browser", daemon=True).start()
            await stop.wait()
            patience.start()


def _tell(url: str, reach: Reach, *, is_json: bool) -> None:
    words = (
        json.dumps({"type": "demo", "url": url}) if is_json else f"The demo is at {reach.told(url)}\nCtrl-C stops it."
    )
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _cut_off() -> None:
    sys.stderr.write("the demo did not stop in time, and was cut off\n")
    sys.stderr.flush()
    os._exit(0)
