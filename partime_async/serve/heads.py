"""One body for all clients, and a head for each: what a client teaches changes nothing for the others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from torch import Tensor, nn

from partime_async.checkpoint import Snapshot
from partime_async.errors import ConfigurationError, PartimeError
from partime_async.frame import Value
from partime_async.learning import Learner
from partime_async.pipeline import Pipeline
from partime_async.serve.client import Client, Left
from partime_async.serve.session import Teach
from partime_async.serve.shared import SharedPipeline, described


class HeadsFull(PartimeError):
    """A client came when as many clients as there may be have a head of their own; nobody's fault."""


class HeadService(SharedPipeline):
    """Serves one body to all clients, and behind it a head of its own to each.

    The body is one pipeline, of which each client is a feed; it runs, and does not learn. A head is a small pipeline of
    one stage, made for each client: it takes what the body puts out, and learns from this client's targets alone. A
    client that says what it is called (`Client.key`) finds its head as it left it when it comes back, as long as it is
    among the last `remembered` ones: its weights, and all that its optimiser and schedule remember.

    Args:
        body: Not entered yet: the service enters it and leaves it.
        example: What the body takes, with the batch dimension.
        make_head: Makes a fresh head, always with the same weights if clients are to begin alike.
        learner: How heads learn; None: they do not.
        features: What the body puts out, with the batch dimension.
        heads: Clients with a head at the same time; each costs a thread and its memory.
        remembered: Heads kept for clients that are away, on the CPU.
        teach: See `ModelService`.
        to_target: See `ModelService`.
        max_age_s: See `ModelService`.
        summary: What it is, for people.

    Raises:
        ConfigurationError: A number below 1; the caller's fault.
    """

    def __init__(
        self,
        body: Pipeline,
        example: Value,
        *,
        make_head: Callable[[], nn.Module],
        features: Value,
        learner: Learner | None,
        heads: int = 8,
        remembered: int = 64,
        teach: Teach | None = None,
        to_target: Callable[[Tensor], Value] | None = None,
        max_age_s: float | None = None,
        summary: str = "",
    ) -> None:
        if min(heads, remembered) < 1:
            raise ConfigurationError(f"heads={heads}, remembered={remembered}. Pass 1 or more each.")
        super().__init__(body, example, teach=teach, to_target=to_target, max_age_s=max_age_s)
        self._make_head = make_head
        self._features = features
        self._learner = learner
        self._heads = heads
        self._remembered = remembered
        self._summary = summary
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self._owners: dict[str, tuple[Client, asyncio.Event]] = {}
        self._count = 0
        self._takes_targets = False

    async def _prepare(self) -> None:
        # What is wrong with the head is found now, and the first client need not wait for what is only done once.
        async with self._head(None) as head:
            self._takes_targets = self._takes_targets_of(head)

    def describe(self) -> Mapping[str, object]:
        """Say what it takes and what it does."""
        return {
            "kind": "heads",
            "summary": self._summary,
            **described(self._example),
            "heads": self._heads,
            "learns": self._learner is not None,
            "takes_targets": self._takes_targets,
        }

    def pipelines(self) -> Mapping[str, Pipeline]:
        """Return the body; heads come and go with their clients."""
        return {"body": self._pipeline} if self._is_running else {}

    async def serve(self, client: Client) -> None:
        """Serve one client until it leaves.

        Raises:
            HeadsFull: There are as many heads as there may be.
            PartimeError: The body, or this client's head, has stopped.
        """
        async with (
            self._ownership(client),
            self._head(client.key) as head,
            self._feed(client) as first,
            head.feed() as second,
        ):
            await self._session(client, [first, second], taught=head).run()

    @asynccontextmanager
    async def _ownership(self, client: Client) -> AsyncIterator[None]:
        """See that nobody has two heads: a client that comes back before its old visit has ended, ends it."""
        key = client.key
        while key is not None and (before := self._owners.get(key)) is not None:
            before[0].close(f"{Left.BYE}: it came back")
            await before[1].wait()
        if self._count >= self._heads:
            raise HeadsFull(f"{self._heads} clients have a head of their own already. Come back later.")
        self._count += 1
        is_over = asyncio.Event()
        if key is not None:
            self._owners[key] = (client, is_over)
        try:
            yield
        finally:
            self._count -= 1
            if key is not None:
                del self._owners[key]
            is_over.set()

    @asynccontextmanager
    async def _head(self, key: str | None) -> AsyncIterator[Pipeline]:
        head = Pipeline(self._make_head(), self._features, stages=1, learner=self._learner)
        is_its_own = False
        try:
            async with head:
                if key is not None and (kept := self._kept.get(key)) is not None:
                    await head.resume(kept)
                is_its_own = True
                yield head
        finally:
            # Also of one that failed, or was cut off: what it has learned is the client's. But a head that never came
            # to know what the client had taught, because this was cut off before, must not take the place of that.
            if key is not None and self._learner is not None and is_its_own:
                self._kept[key] = await head.snapshot()
                self._kept.move_to_end(key)
                while len(self._kept) > self._remembered:
                    self._kept.popitem(last=False)
