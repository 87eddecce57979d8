"""`partime-async serve`: a network for browsers and programs, from the first byte to Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import Full, Queue
from typing import NoReturn

import torch
from torch import Tensor, nn

from partime_async import targets
from partime_async.checkpoint import check_place, read
from partime_async.cli.interrupt import Interrupt
from partime_async.cli.lessons import LearnOptions, Lesson
from partime_async.cli.options import LoopKind
from partime_async.cli.plan import PlanOptions, frame_shape
from partime_async.cli.reach import Reach
from partime_async.cli.run import loop_factory
from partime_async.errors import ConfigurationError
from partime_async.frame import Value
from partime_async.learning import Learner
from partime_async.models import build
from partime_async.offload import in_thread
from partime_async.pipeline import Pipeline
from partime_async.serve import VIEWER, ClientLimits, HeadService, ModelService, Server, make_app
from partime_async.serve.log import JsonFormatter, TextFormatter, event
from partime_async.serve.session import Teach

_CLOSE_S = 0.5
"""Seconds for a stage to end the frame it is at when the server stops."""

_PATIENCE_S = 1.7
"""Seconds until a server that is told to stop is cut off: a driver or a stage may be stuck."""

_LOG_LINES = 1000
"""Lines that wait for whoever reads stderr; more are lost, as nothing waits for a reader that has stopped."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `partime-async serve` was told."""

    plan: PlanOptions
    learning: LearnOptions | None
    loss: str
    own_head: int
    reach: Reach
    max_clients: int
    max_duration_s: float
    max_age_s: float | None
    has_page: bool
    weights: str | None
    save: str | None
    seed: int


def serve(options: ServeOptions, *, loop: LoopKind | None, is_json: bool) -> int:
    """Serve until Ctrl-C or SIGTERM, and return the exit code: 0 then.

    Raises:
        PartimeError: It cannot be served as asked, or its network has stopped.
    """
    interrupt = Interrupt()
    with (
        logging_to_stderr(is_json=is_json),
        asyncio.Runner(loop_factory=loop_factory(loop)) as runner,
        suppress(asyncio.CancelledError),
    ):
        runner.run(_serve(options, interrupt, is_json=is_json))
    return 0


async def _serve(options: ServeOptions, interrupt: Interrupt, *, is_json: bool) -> None:
    with interrupt:
        reach = options.reach
        access = await in_thread(reach.access, name="partime token")
        tls = await in_thread(reach.tls, name="partime certificate")
        ice = await in_thread(reach.ice, name="partime ice")
        pipeline, service = await in_thread(partial(_service, options), name="partime model")
        limits = ClientLimits(clients=options.max_clients, duration_s=options.max_duration_s, leave_s=_CLOSE_S)
        app = make_app(
            {"model": service}, access=access, limits=limits, ice=ice, page=VIEWER if options.has_page else None
        )
        stop = asyncio.Event()
        async with Server(app, host=reach.host, port=reach.port, tls=tls) as server:
            interrupt.when(stop.set)
            _tell(server.url, options, is_json=is_json)
            await stop.wait()
            event("server.interrupted", signal=None if interrupt.signal is None else interrupt.signal.name)
            if options.save is not None:
                await pipeline.save(options.save)
                event("server.saved", path=options.save)
            patience = threading.Timer(_PATIENCE_S, _cut_off)
            patience.daemon = True
            patience.start()
        patience.cancel()


def _cut_off() -> None:
    sys.stderr.write("the server did not stop in time, and was cut off\n")
    sys.stderr.flush()
    os._exit(0)


def _tell(url: str, options: ServeOptions, *, is_json: bool) -> None:
    if is_json:
        sys.stdout.write(json.dumps({"type": "serving", "url": url, "model": options.plan.model}) + "\n")
    else:
        sys.stdout.write(f"serving {options.plan.model} at {options.reach.told(url)}\nCtrl-C stops it.\n")
    sys.stdout.flush()


def end_process(code: int) -> NoReturn:
    """End the process, with nothing left to do: to take torch apart first would take a second of a user's time."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# -- what was asked for, as objects; all of it may block -----------------------------------------------------------


def _service(options: ServeOptions) -> tuple[Pipeline, ModelService | HeadService]:
    torch.manual_seed(options.seed)
    module = build(options.plan.model).eval()
    example = torch.rand(_single_frame(frame_shape(options.plan)))
    if options.weights is not None:
        _load(module, Path(options.weights))
    if options.save is not None:
        check_place(Path(options.save))  # not only in the end, when all that was learned would be lost
    if options.save is not None and options.own_head:
        raise ConfigurationError("--save keeps the weights of one network, and --own-head makes many. Use one of them.")
    learning, cut = options.learning, options.plan.cut
    learner = None if learning is None else learning.learner

    def cut_up(network: nn.Module, learner: Learner | None) -> Pipeline:
        return Pipeline(
            network,
            example,
            stages=cut.stages,
            balance=cut.balance,
            devices=cut.devices,
            learner=learner,
            close_timeout_s=_CLOSE_S,
        )

    teach = None if learning is None else _TEACH[learning.lesson]
    to_target = _class_target if options.loss == "cross-entropy" else None
    summary = f"{options.plan.model}, {'which does not learn' if learner is None else 'which learns'}"
    if not options.own_head:
        pipeline = cut_up(module, learner)
        service = ModelService(
            pipeline, example, teach=teach, to_target=to_target, max_age_s=options.max_age_s, summary=summary
        )
        return pipeline, service
    body, make_head, features = _beheaded(module, options.own_head, example)
    pipeline = cut_up(body, None)
    return pipeline, HeadService(
        pipeline,
        example,
        make_head=make_head,
        features=features,
        learner=learner,
        heads=options.max_clients,
        teach=teach,
        to_target=to_target,
        max_age_s=options.max_age_s,
        summary=f"{summary}, with a head for each client",
    )


def _single_frame(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape of one frame with its batch dimension, which clients' frames come without.

    Raises:
        ConfigurationError: It is none; the caller's fault.
    """
    if len(shape) < 2 or shape[0] != 1:
        told = ",".join(map(str, shape))
        raise ConfigurationError(
            f"--shape is {told}, and frames are served one by one. Begin with a 1, such as 1,3,64,64."
        )
    return shape


def _load(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(read(path).weights)
    except FileNotFoundError as error:
        raise ConfigurationError(f"--weights is {path}, and there is no such file. Check its name.") from error
    except RuntimeError as error:
        raise ConfigurationError(
            f"{path} does not fit the model: {error!s:.300} Choose the model that wrote it."
        ) from error


_TEACH: dict[Lesson, Teach | None] = {
    Lesson.NEXT_FRAME: targets.ahead,
    Lesson.ITSELF: targets.itself,
    Lesson.GIVEN: None,
}


def _class_target(target: Tensor) -> Value:
    return target.reshape(-1)[:1].long()


def _beheaded(module: nn.Module, layers: int, example: Tensor) -> tuple[nn.Module, Callable[[], nn.Module], Tensor]:
    """Return a network without its last layers, what makes these, and what the first part puts out.

    Raises:
        ConfigurationError: It is no Sequential of more layers than that; the caller's fault.
    """
    if not isinstance(module, nn.Sequential) or not 0 < layers < len(module):
        raise ConfigurationError(
            f"--own-head is {layers}, and the model is a {type(module).__name__}"
            f"{f' of {len(module)} layers' if isinstance(module, nn.Sequential) else ''}. "
            "Give a number of last layers of a Sequential that has more."
        )
    body, head = module[:-layers], module[-layers:]
    with torch.inference_mode():
        features = body(example)
    return body, lambda: head, features.clone()  # a pipeline copies the module that it is given


# -- the log -------------------------------------------------------------------------------------------------------


class _Lossy(QueueHandler):
    """Hands records to a thread; one that finds no room is lost."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue if there is room."""
        with suppress(Full):
            super().enqueue(record)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out tasks that aiortc abandons when a client vanishes: the client's own line says that it has, and why."""
    return record.name != "asyncio" or re.search("aiortc|aioice", record.getMessage()) is None


@contextmanager
def logging_to_stderr(*, is_json: bool) -> Iterator[None]:
    """Write events, and warnings of all libraries, to stderr, on a thread of its own."""
    queue: Queue[logging.LogRecord] = Queue(_LOG_LINES)
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(JsonFormatter() if is_json else TextFormatter())
    listener = QueueListener(queue, stderr)
    handler = _Lossy(queue)
    handler.addFilter(_is_news)
    logging.getLogger().addHandler(handler)
    logging.getLogger("partime_async.serve").setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        listener.stop()
