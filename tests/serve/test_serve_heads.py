"""A head for each client: what one teaches stays its own."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch
from torch import nn

import partime_async as pa
from partime_async.errors import ConfigurationError
from partime_async.learning.learner import OptimizerFactory
from partime_async.serve import HeadService
from tests.serve.visitors import WIDTH, Rig, network, serving

FRAME = torch.ones(WIDTH)


def learner(optimizer: OptimizerFactory, **options: object) -> pa.Learner:
    """Return a learner of classes."""
    return pa.Learner(nn.functional.cross_entropy, optimizer, rule=pa.rules.exact(), **options)  # type: ignore[arg-type]


def heads(taught_by: pa.Learner | None = None, **options: object) -> HeadService:
    """Return a service of the small network whose last layer is each client's own."""
    module = network()
    return HeadService(
        pa.Pipeline(module[:2], torch.zeros(1, WIDTH), stages=1, close_timeout_s=2.0),
        torch.zeros(1, WIDTH),
        make_head=lambda: module[2:],
        features=torch.zeros(1, 8),
        learner=taught_by or learner(partial(torch.optim.SGD, lr=0.5)),
        to_target=lambda target: target.reshape(-1)[:1].long(),
        **options,  # type: ignore[arg-type]
    )


async def taught(rig: Rig, key: str, label: int | None, frames: int = 12) -> torch.Tensor:
    """Visit, teach a class if one is given, and return the first output."""
    outputs = []
    async with rig.stream(f"?client={key}") as stream:
        for number in range(frames):
            await stream.send(FRAME, number, target=None if label is None else torch.tensor(label))
            outputs.append(torch.from_numpy((await stream.result()).array))
    service = rig.roster.services["main"]
    assert isinstance(service, HeadService)
    await rig.until(lambda: service._count == 0)  # its place is free before its head is put away
    return outputs[0]


async def test_client_teaches_its_own_head_and_finds_it_again() -> None:
    """Others begin with the untaught one; the body stays as it was."""
    with torch.inference_mode():
        untaught = network()(FRAME[None])[0]
    async with serving(heads()) as rig:
        assert torch.equal(await taught(rig, "ann", 0), untaught)
        assert torch.equal(await taught(rig, "ben", 2), untaught)
        assert int((await taught(rig, "ann", None, 1)).argmax()) == 0
        assert int((await taught(rig, "ben", None, 1)).argmax()) == 2
        assert torch.equal(await taught(rig, "cleo", None, 1), untaught)


@pytest.mark.parametrize(
    "optimizer",
    [partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(torch.optim.Adam, lr=0.05)],
    ids=["momentum", "adam"],
)
async def test_head_that_is_found_again_learns_on_as_if_it_had_never_been_away(optimizer: OptimizerFactory) -> None:
    """Its momentum, its moments and its learning rate are kept with its weights: three visits are one, bit for bit."""

    def halved(made: torch.optim.Optimizer) -> torch.optim.lr_scheduler.StepLR:
        return torch.optim.lr_scheduler.StepLR(made, 5, gamma=0.5)

    async with serving(heads(learner(optimizer, scheduler=halved))) as rig:
        await taught(rig, "ann", 0, 12)
        for frames in (3, 5, 4):
            await taught(rig, "ben", 0, frames)
        assert torch.equal(await taught(rig, "ann", None, 1), await taught(rig, "ben", None, 1))


async def test_visit_that_ends_while_its_head_is_fetched_leaves_what_was_taught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head that never came to know the client's lessons does not take their place."""
    service, fetching = heads(), asyncio.Event()

    async def never(*_: object) -> None:
        fetching.set()
        await asyncio.Event().wait()

    async with serving(service) as rig:
        await taught(rig, "ann", 0)
        with monkeypatch.context() as patch:
            patch.setattr(pa.Pipeline, "resume", never)
            async with rig.stream("?client=ann"):
                await fetching.wait()
            await rig.until(lambda: service._count == 0)
        assert int((await taught(rig, "ann", None, 1)).argmax()) == 0


async def test_head_that_was_away_for_long_is_forgotten() -> None:
    """Only so many are kept for clients that are away."""
    async with serving(heads(remembered=1)) as rig:
        first = await taught(rig, "ann", 0)
        await taught(rig, "ben", 2)
        assert torch.equal(await taught(rig, "ann", None, 1), first)


async def test_client_that_comes_back_early_ends_its_old_visit() -> None:
    """Nobody has two heads of the same name, and what the old visit taught is there."""
    async with serving(heads()) as rig, rig.stream("?client=ann") as old:
        for number in range(12):
            await old.send(FRAME, number, target=torch.tensor(1))
            await old.result()
        async with rig.stream("?client=ann") as new:
            assert str((await old.words("bye"))["reason"]).startswith("bye: it came back")
            await new.send(FRAME, 0)
            assert int((await new.result()).array.argmax()) == 1


async def test_client_beyond_the_number_of_heads_is_sent_away() -> None:
    """It hears why; the one that has the head goes on."""
    async with serving(heads(heads=1)) as rig, rig.stream() as one:
        await one.send(FRAME, 0)
        await one.result()
        async with rig.stream() as two:
            assert "HeadsFull" in str((await two.words("error"))["error"])
        await one.send(FRAME, 1)
        assert (await one.result()).sequence == 1


async def test_head_that_does_not_fit_the_body_is_found_at_the_start() -> None:
    """Not only by the first client."""
    service = heads()
    service._features = torch.zeros(1, 5)
    with pytest.raises(pa.PartimeError):
        async with serving(service):
            pass


@pytest.mark.parametrize("option", ["heads", "remembered"])
def test_number_of_heads_below_one_is_refused(option: str) -> None:
    """Nothing could be served."""
    with pytest.raises(ConfigurationError):
        heads(None, **{option: 0})
