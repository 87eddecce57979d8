"""Targets that programs send behind their frames: which frame is meant, whether it is in time, and what it teaches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.client import Kind, encode
from partime_async.errors import ConfigurationError, FrameError, LabelError
from partime_async.frame import Value
from partime_async.serve import HeadService
from partime_async.serve.late import FRAMES_KEPT, TARGETS_WAITING, LateTargets
from tests.serve.visitors import WIDTH, Rig, Stream, learner, model_service, network, serving

DELAY = 3
LATE = replace(learner(), label_delay=DELAY)


async def taught_here(frames: Tensor, goals: dict[int, Tensor]) -> dict[str, Tensor]:
    """Return what the same network learns without a server, from the same targets, each a frame late."""
    async with pa.Pipeline(network(), torch.zeros(1, WIDTH), stages=1, learner=LATE) as pipeline:
        for number, frame in enumerate(frames):
            await pipeline.process(frame[None])
            if (goal := goals.get(number - 1)) is not None:
                await pipeline.label(number - 1, goal[None])
        return await pipeline.state_dict()


async def heard(stream: Stream) -> None:
    """Wait until the service has done all that was asked for."""
    await stream.socket.send_json({"type": "ping"})
    await stream.words("pong")


async def say(stream: Stream, how: str, sequence: int, goal: Tensor) -> None:
    """Send a target: as a command, as a binary message, or as a line of JSON."""
    if how == "binary":
        await stream.socket.send_bytes(encode(goal.numpy(), sequence=sequence, kind=Kind.TARGET))
    else:
        kind = {"type": "label"} if how == "command" else {"kind": "target"}
        await stream.socket.send_json({**kind, "sequence": sequence, "values": goal.tolist()})


@pytest.mark.parametrize("how", ["command", "binary", "json"])
async def test_late_targets_teach_what_they_would_have_taught_in_time(how: str) -> None:
    """The weights are those of a pipeline that is labelled directly, bit for bit, however the targets are sent."""
    frames, goals = torch.randn(9, WIDTH), {number: torch.randn(3) for number in (0, 1, 4)}
    service = model_service(learner=LATE)
    async with serving(service) as rig, rig.stream() as stream:
        for number, frame in enumerate(frames):
            await stream.send(frame, 10 * number)
            await stream.result()
            if (goal := goals.get(number - 1)) is not None:
                await say(stream, how, 10 * (number - 1), goal)
                await heard(stream)
        trained = await service.pipelines()["model"].state_dict()
    wanted = await taught_here(frames, goals)
    assert all(torch.equal(trained[name], wanted[name]) for name in wanted)
    assert not torch.equal(trained["0.weight"], network().state_dict()["0.weight"])


async def taken(rig: Rig) -> int:
    """Return how many targets the one network has learned from."""
    service = rig.roster.services["main"]
    seen = service.pipelines()["model"].statistics().learning  # type: ignore[attr-defined]
    return int(seen.labels.taken)


async def test_late_target_that_comes_before_the_result_finds_its_frame() -> None:
    """A program need not wait for results to send its targets."""
    async with serving(model_service(learner=LATE)) as rig, rig.stream() as stream:
        for number in range(40):
            await stream.send(torch.ones(WIDTH), number)
            await say(stream, "binary", number, torch.zeros(3))
            if number % 2:  # two at a time
                await stream.result()
                await stream.result()
        # Of the last frames the events are still to come.
        assert await taken(rig) >= 40 - DELAY - 4


async def test_target_that_comes_too_late_is_told_of_and_costs_nothing_else() -> None:
    """However many they are, the client is served on: they are no rubbish."""
    async with serving(model_service(learner=LATE)) as rig, rig.stream() as stream:
        for number in range(DELAY + 2):
            await stream.send(torch.zeros(WIDTH), number)
            await stream.result()
        for _ in range(30):
            await say(stream, "command", 0, torch.zeros(3))
        told = await stream.words("unlearned")
        assert told["sequence"] == 0
        assert f"at most {DELAY} frame(s)" in str(told["error"])
        assert (await stream.words("telemetry"))["late_targets"] == {"taken": 0, "refused": 1}
        await stream.send(torch.zeros(WIDTH), 99)
        assert (await stream.result()).sequence == 99


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ({"label": 1}, "None"),
        ({"sequence": True, "label": 1}, "True"),
        ({"sequence": "0", "label": 1}, "'0'"),
        ({"sequence": 0}, "no target"),
        ({"sequence": 0, "label": -1}, "class's number"),
        ({"sequence": 0, "label": True}, "class's number"),
        ({"sequence": 0, "values": {"a": 1}}, "no tensor"),
        ({"sequence": 0, "target": [1.0]}, "no target"),
    ],
)
async def test_label_that_says_nothing_is_refused(command: dict[str, object], words: str) -> None:
    """The client is told what is wrong."""
    async with serving(model_service(learner=LATE)) as rig, rig.stream() as stream:
        await stream.send(torch.zeros(WIDTH), 0)
        await stream.result()
        await stream.socket.send_json({"type": "label", **command})
        assert words in str((await stream.words("error"))["error"])


@pytest.mark.parametrize("teach", [None, pa.targets.ahead])
async def test_label_where_nothing_learns_from_labels_is_told_of(teach: object) -> None:
    """A network that does not learn, or that is taught by the service itself, says so."""
    options = {} if teach is None else {"learner": learner(), "teach": teach}
    async with serving(model_service(**options)) as rig, rig.stream() as stream:  # type: ignore[arg-type]
        assert stream.hello["takes_targets"] is False
        await stream.socket.send_json({"type": "label", "sequence": 0, "label": 1})
        assert "nothing here learns" in str((await stream.words("unlearned"))["error"])


async def test_camera_that_labels_a_frame_is_told_what_it_can_do() -> None:
    """Its frames have no numbers that it could know."""
    async with serving(model_service(learner=LATE)) as rig, rig.call() as caller:
        caller.control.send_json({"type": "label", "sequence": 0, "label": 1})
        said = await caller.said()
        while said["type"] != "error":
            said = await caller.said()
        assert "Send target" in str(said["error"])


async def test_late_targets_of_a_client_teach_its_own_head() -> None:
    """The frame that is meant is the head's, whose numbers are not those of the body that others share."""
    module = network()
    service = HeadService(
        pa.Pipeline(module[:2], torch.zeros(1, WIDTH), stages=1, close_timeout_s=2.0),
        torch.zeros(1, WIDTH),
        make_head=lambda: module[2:],
        features=torch.zeros(1, 8),
        learner=pa.Learner(
            nn.functional.cross_entropy, partial(torch.optim.SGD, lr=0.5), rule=pa.rules.exact(), label_delay=1
        ),
        to_target=lambda target: target.reshape(-1)[:1].long(),
    )
    async with serving(service) as rig, rig.stream("?client=ann") as ann, rig.stream("?client=ben") as ben:
        outputs = []
        for number in range(24):
            for stream in (ann, ben):
                await stream.send(torch.ones(WIDTH), number)
                outputs.append((await stream.result()).array)
            await ann.socket.send_json({"type": "label", "sequence": number, "label": 2})
            await heard(ann)
    assert int(outputs[-2].argmax()) == 2
    assert np.array_equal(outputs[-1], outputs[1])


async def test_late_targets_are_kept_in_bounded_number() -> None:
    """Of frames that never end, and of frames that were labelled long ago, nothing piles up."""
    given: list[int] = []

    async def label(index: int, target: Value) -> None:
        given.append(index)

    late = LateTargets(label)
    for sequence in range(2 * FRAMES_KEPT):
        await late.result(sequence, index=sequence)
    await late.take(0, torch.zeros(1))
    await late.take(FRAMES_KEPT, torch.zeros(1))
    assert given == [FRAMES_KEPT]
    for sequence in range(TARGETS_WAITING):
        await late.take(-1 - sequence, torch.zeros(1))
    assert late.refused == 1
    await late.result(-TARGETS_WAITING, index=7)
    assert (given[1:], late.taken) == ([7], 2)


async def test_late_target_of_a_pipeline_that_refuses_it_says_why() -> None:
    """Too late is counted; so is what has no use."""

    async def too_late(index: int, target: Value) -> None:
        raise LabelError(index, 9, 2)

    async def useless(index: int, target: Value) -> None:
        raise ConfigurationError("it is unsupervised")

    for label, words in [(too_late, "at most 2 frame"), (useless, "nothing here learns")]:
        late = LateTargets(label)
        await late.result(4, index=5)
        with pytest.raises(FrameError, match=words):
            await late.take(4, torch.zeros(1))
        assert (late.taken, late.refused) == (0, 1)
