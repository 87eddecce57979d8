"""One network for all clients: each is a feed of the same pipeline, they take turns, and all may teach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from partime_async.frame import Value
from partime_async.pipeline import Pipeline
from partime_async.serve.client import Client
from partime_async.serve.session import Teach
from partime_async.serve.shared import SharedPipeline, described


class ModelService(SharedPipeline):
    """Serves one pipeline to any number of clients.

    A camera's feed is live: its newest frame counts, and results go back as a video. A program's frames come in order,
    none is dropped, and a pipeline that is slower holds the program back; its results go back as tensors. The feeds
    take turns, a frame each, so that none waits for another one's backlog.

    With a learner in the pipeline every client's frames teach the one network, in the order of their admission; frames
    without a target teach nothing. A client can set the target of its coming frames with the command
    ``{"type": "target", "label": 2}`` or ``"values": [...]``, and ``{"type": "target"}`` ends that. A program can also
    send the target of an earlier frame, within the learner's `label_delay` of all clients' frames together:
    ``{"type": "label", "sequence": 7, "label": 2}``, or a TARGET message behind its frame.

    Args:
        pipeline: Not entered yet: the service enters it and leaves it.
        example: What the pipeline takes, with the batch dimension: a camera's pictures are resized to it.
        teach: Gives each client's frames their targets, such as `partime_async.targets.ahead` (which passes each frame
            on when the next one is there); a camera's are then learned from in spare time, see `Pipeline.feed`. None:
            frames have the targets that the client sent, if any.
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
        super().__init__(pipeline, example, teach=teach, to_target=to_target, max_age_s=max_age_s)
        self._summary = summary
        self._learns = self._takes_targets = False

    async def _prepare(self) -> None:
        self._learns = self._pipeline.statistics().learning is not None
        self._takes_targets = self._takes_targets_of(self._pipeline)

    def describe(self) -> Mapping[str, object]:
        """Say what it takes and what it does."""
        return {
            "kind": "model",
            "summary": self._summary,
            **described(self._example),
            "learns": self._learns,
            "takes_targets": self._takes_targets,
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
            await self._session(client, [feed], taught=self._pipeline).run()
