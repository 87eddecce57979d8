"""What services of one shared pipeline have in common: its life, its feeds, and the sessions on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from torch import Tensor

from partime_async.feed import Feed
from partime_async.frame import Value
from partime_async.overflow import Learn
from partime_async.pipeline import Pipeline
from partime_async.serve.client import Client, ClientKind
from partime_async.serve.session import Session, Teach, batched
from partime_async.webrtc.worker import Worker


class SharedPipeline:
    """A pipeline of which each client has a feed.

    Args:
        pipeline: Not entered yet: the service enters it and leaves it.
        example: What it takes, with the batch dimension.
        teach: See `ModelService`.
        to_target: See `ModelService`.
        max_age_s: See `ModelService`.

    Attributes:
        error: What stopped the pipeline, if something did.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        example: Value,
        *,
        teach: Teach | None,
        to_target: Callable[[Tensor], Value] | None,
        max_age_s: float | None,
    ) -> None:
        self.error: BaseException | None = None
        self._pipeline = pipeline
        self._example = example
        self._teach = teach
        self._to_target = to_target or batched
        self._max_age_s = max_age_s
        self._painter = Worker("partime painter")
        self._stack = AsyncExitStack()
        self._is_running = False

    async def __aenter__(self) -> Self:
        self._painter = Worker("partime painter")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._painter.aclose)
            await stack.enter_async_context(self._pipeline)
            await stack.enter_async_context(watched(self._pipeline, self._stopped))
            await self._prepare()
            self._stack = stack.pop_all()
        self._is_running = True
        return self

    async def __aexit__(self, *exception: object) -> bool | None:
        self._is_running = False
        await self._stack.aclose()
        return None

    async def _prepare(self) -> None:
        """Do what else there is to do before the first client comes; the pipeline runs."""

    def _feed(self, client: Client) -> Feed:
        """Return a feed for a client: a camera's newest frame counts, and of a program's none is dropped.

        Where every picture of a camera is a lesson, the video must not stand still for them: the spare time has to do.
        """
        if client.kind is not ClientKind.WEBRTC:
            return self._pipeline.feed(max_age_s=self._max_age_s)
        is_taught = self._teach is not None and _uses_targets(self._pipeline)
        learn = Learn.SPARE if is_taught else Learn.ALWAYS
        return self._pipeline.feed(overflow="latest", max_age_s=self._max_age_s, learn=learn)

    def _session(self, client: Client, feeds: Sequence[Feed], *, taught: Pipeline) -> Session:
        """Return a client's session on these feeds, one behind the other; the last one's pipeline is taught."""
        return Session(
            client,
            feeds,
            example=self._example,
            teach=self._teach,
            to_target=self._to_target,
            painter=self._painter,
            label=taught.label if self._takes_targets_of(taught) else None,
        )

    def _takes_targets_of(self, pipeline: Pipeline) -> bool:
        """Whether a running pipeline learns from what clients say."""
        return self._teach is None and _uses_targets(pipeline)

    def _stopped(self, error: BaseException) -> None:
        self.error = error


def _uses_targets(pipeline: Pipeline) -> bool:
    """Whether a running pipeline learns, and from targets."""
    learning = pipeline.statistics().learning
    return learning is not None and learning.labels is not None


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
