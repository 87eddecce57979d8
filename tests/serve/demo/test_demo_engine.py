"""A network whose rule, weights and learning change while frames go through it."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from partime_async.errors import CheckpointError, ConfigurationError
from partime_async.serve.demo.engine import RULES, Engine, Recipe

FRAME = torch.ones(1, 4)
TARGET = torch.zeros(1, 2)


def network() -> nn.Sequential:
    """Return a small network, the same every time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


RECIPE = Recipe(
    network=network,
    example=FRAME,
    balance=[2, 1],
    loss=nn.functional.mse_loss,
    optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
)


def engine() -> Engine:
    """Return an engine of the small network."""
    return Engine(RECIPE, name="test")


async def learn(subject: Engine, count: int = 5) -> None:
    """Teach it a few frames."""
    for _ in range(count):
        await subject.generation.pipeline.process(FRAME, TARGET)


async def weights(subject: Engine) -> dict[str, Tensor]:
    """Return its weights."""
    return await subject.generation.pipeline.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


async def test_engine_reset_has_the_weights_it_began_with() -> None:
    """Starting over brings the first weights back, bit for bit."""
    async with engine() as subject:
        first = await weights(subject)
        await learn(subject)
        assert not same(first, await weights(subject))
        await subject.reset()
        assert same(first, await weights(subject))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "pipedream"])
async def test_engine_with_another_rule_goes_on_with_all_that_was_learned(rule: str) -> None:
    """The new pipeline learns by the rule asked for, from the weights and the momentum of the old one."""
    async with engine() as subject:
        await learn(subject)
        before = await weights(subject)
        await subject.use_rule(rule)
        assert subject.generation.rule == rule
        assert same(before, await weights(subject))
        await learn(subject)
        assert not same(before, await weights(subject))


async def test_engine_changing_its_rule_loses_no_frame_of_a_feed_that_moves_over() -> None:
    """A reader that goes to the next generation as soon as there is one gets every frame of both, in order."""
    results: list[int] = []
    async with engine() as subject:

        async def read(count: int) -> None:
            generation = subject.generation
            with generation.used() as pipeline:
                async with pipeline.feed() as feed:
                    for number in range(count):
                        await feed.put(FRAME, TARGET, context=number)
                    feed.close()
                    async for result in feed:
                        assert isinstance(result.context, int)
                        results.append(result.context)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(40))
            await asyncio.sleep(0)
            await subject.use_rule("replay")
            tasks.create_task(read(40))
    assert sorted(results) == sorted([*range(40), *range(40)])


async def test_engine_announces_each_generation_once() -> None:
    """Whoever follows the generations gets the one of now and each that takes over."""
    seen: list[str] = []
    async with engine() as subject:

        async def follow() -> None:
            async for generation in subject.generations():
                seen.append(generation.rule)  # noqa: PERF401 - it never ends

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await subject.use_rule("exact")
        await asyncio.sleep(0)
        await subject.use_rule("exact")  # which it has
        await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait({following})
    assert seen == ["pipedream", "exact"]


async def test_engine_frozen_stays_so_with_another_rule() -> None:
    """A frozen network learns nothing, also after its rule was changed, until it is thawed."""
    async with engine() as subject:
        await subject.freeze()
        await subject.use_rule("partime")
        assert subject.is_frozen
        before = await weights(subject)
        await learn(subject)
        assert same(before, await weights(subject))
        await subject.thaw()
        await learn(subject)
        assert not same(before, await weights(subject))


async def test_engine_given_an_unknown_rule_refuses_it() -> None:
    """A rule that does not exist is refused by name, and nothing changes."""
    async with engine() as subject:
        with pytest.raises(ConfigurationError, match="hebb"):
            await subject.use_rule("hebb")
        assert subject.generation.number == 1


async def test_engine_exports_what_it_imports() -> None:
    """The file for the browser, read back by another engine, gives the same weights; rubbish changes nothing."""
    async with engine() as subject, engine() as other:
        await learn(subject)
        data = await subject.exported()
        await other.imported(data)
        assert same(await weights(subject), await weights(other))
        for rubbish in (b"", b"no weights", data[:-100]):
            with pytest.raises(CheckpointError):
                await other.imported(rubbish)
        assert same(await weights(subject), await weights(other))


async def test_engine_loads_what_it_saved_and_leaves_no_file_behind() -> None:
    """A snapshot brings the weights back; when the engine is left, its folder is gone."""
    async with engine() as subject:
        await learn(subject)
        path = await subject.save()
        before = await weights(subject)
        await learn(subject)
        await subject.load(path)
        assert same(before, await weights(subject))
        assert path.exists()
        folder = path.parent
    assert not folder.exists()


async def test_engine_edited_has_the_new_weights() -> None:
    """An edit changes the weights in place, and only those it writes to."""
    async with engine() as subject:

        def change(state: dict[str, Tensor]) -> None:
            state["2.bias"].fill_(7.0)

        await subject.edit(change)
        state = await weights(subject)
        assert state["2.bias"].tolist() == [7.0, 7.0]
        assert torch.equal(state["0.weight"], network().state_dict()["0.weight"])


async def test_engine_that_cannot_be_built_says_why_and_leaves_nothing() -> None:
    """An error on the way in reaches the caller, and the engine can be tried again."""
    broken = Engine(
        Recipe(network, FRAME, [1, 1], nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.1)), name="broken"
    )
    with pytest.raises(ConfigurationError):
        await broken.__aenter__()
    with pytest.raises(ConfigurationError, match="does not run"):
        _ = broken.generation
