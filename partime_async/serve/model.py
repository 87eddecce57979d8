"""One network for all clients: each is a feed of the same pipeline, they take turns, and all may teach it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from torch import Tensor

from partime_async.feed import Feed
from partime_async.frame import Value
from partime_async.pipeline import Pipeline
from partime_async.serve.client import Client, ClientKind
from partime_async.serve.session import Session, Teach, batched
from partime_async.webrtc.worker import Worker


class ModelService:
    """Serves one pipeline to any number of clients.

    A camera's feed is live: its newest frame counts, and results go back as a video. A program's frames come in order,
    none is dropped, and a pipeline that is slower holds the program back; its results go back as tensors. The feeds
    take turns, a frame each, so that none waits for another one's backlog.

    With a learner in the pipeline every client's frames teach the one network, in the order of their admission; frames
    without a target teach nothing. A client can set the target of its coming frames with the command
    ``{"type": "target", "label": 2}`` or ``"values": [...]``, and ``{"type": "target"}`` ends that.

    Args:
        pipeline: Not entered yet: the service enters it and leaves it.
        example: What the pipeline takes, with the batch dimension: a camera's pictures are resized to it.
        teach: Gives each client's frames their targets, such as `partime_async.targets.ahead` (which passes each frame
            on when the next one is there); None: frames have the targets that the client sent, if any.
        to_target: Makes the loss's target of a tensor that a client sent; None: adds the batch dimension.
        max_age_s: Frames older than this when their turn comes are dropped; None: none are.
        summary: What it is, for people.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        example: Value,
        *,
        teach: Teach | None = None,
        to_target: Callable[[Tensor], Value] | None = None,
        max_age_s: float | None = None,
        summary: str = "",
    ) -> None:
        self.error: BaseException | None = None
        self._pipeline = pipeline
        self._example = example
        self._teach = teach
        self._to_target = to_target or batched
        self._max_age_s = max_age_s
        self._summary = summary
        self._painter = Worker("partime painter")
        self._stack = AsyncExitStack()
        self._is_running = self._learns = False

    async def __aenter__(self) -> Self:
        self._painter = Worker("partime painter")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._painter.aclose)
            await stack.enter_async_context(self._pipeline)
            await stack.enter_async_context(watched(self._pipeline, self._stopped))
            self._stack = stack.pop_all()
        self._is_running = True
        self._learns = self._pipeline.statistics().learning is not None
        return self

    async def __aexit__(self, *exception: object) -> bool | None:
        self._is_running = False
        await self._stack.aclose()
        return None

    def describe(self) -> Mapping[str, object]:
        """Say what it takes and what it does."""
        return {
            "kind": "model",
            "summary": self._summary,
            **described(self._example),
            "learns": self._learns,
            "takes_targets": self._learns and self._teach is None,
        }

    def pipelines(self) -> Mapping[str, Pipeline]:
        """Return the one pipeline."""
        return {"model": self._pipeline} if self._is_running else {}

    async def serve(self, client: Client) -> None:
        """Serve one client until it leaves.

        Raises:
            PartimeError: The pipeline has stopped.
        """
        async with self._feed(client) as feed:
            session = Session(
                client,
                [feed],
                example=self._example,
                teach=self._teach,
                to_target=self._to_target,
                painter=self._painter,
            )
            await session.run()

    def _feed(self, client: Client) -> Feed:
        overflow = "latest" if client.kind is ClientKind.WEBRTC else "block"
        return self._pipeline.feed(overflow=overflow, max_age_s=self._max_age_s)

    def _stopped(self, error: BaseException) -> None:
        self.error = error


@asynccontextmanager
async def watched(pipeline: Pipeline, on_stop: Callable[[BaseException], None]) -> AsyncIterator[None]:
    """Watch a running pipeline, and call `on_stop` with the error that stops it, if one does."""
    task = asyncio.create_task(_watch(pipeline, on_stop), name="partime watch")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _watch(pipeline: Pipeline, on_stop: Callable[[BaseException], None]) -> None:
    # Nothing is ever put into this feed, so its reader hears of the end alone.
    try:
        async with pipeline.feed() as feed:
            async for _ in feed:
                continue
    except Exception as error:
        on_stop(error)


def described(example: Value) -> dict[str, object]:
    """Describe what a network takes from a client: without the batch dimension."""
    tensors = (example,) if isinstance(example, Tensor) else example
    return {"takes": [{"shape": list(t.shape[1:]), "dtype": str(t.dtype).removeprefix("torch.")} for t in tensors]}
