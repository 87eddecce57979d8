"""Layers that remember: a state per feed, exact, reset in order, released, and learned through."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.partition import profile
from partime_async.partition.layers import chain
from partime_async.planning import Request, draw_up
from partime_async.stateful import StateKeeper, stateful_layers, states_of
from tests.stateful_nets import WIDTH, Delay, Gru, Tally, alone, frames, recurrent

EXAMPLE = torch.zeros(1, WIDTH)


def pipeline_of(module: nn.Module, *, balance: Sequence[int] | None = None, stages: int | None = None) -> pa.Pipeline:
    """Return a pipeline of one-thread stages on the CPU."""
    return pa.Pipeline(module, EXAMPLE, balance=balance, stages=stages, devices=["cpu"])


async def outputs(feed: pa.Feed, values: Sequence[Tensor]) -> list[Tensor]:
    """Put frames one after the other and return what came of them."""
    found = []
    for value in values:
        await feed.put(value)
        result = await anext(feed)
        assert isinstance(result.output, Tensor)
        found.append(result.output)
    return found


def keepers(pipeline: pa.Pipeline) -> list[StateKeeper]:
    """Return what each stage remembers."""
    assert pipeline._assembly is not None
    return [part.states for part in pipeline._assembly.parts]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare bit for bit."""
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("balance", [[5], [1, 4], [2, 3], [1, 1, 1, 1, 1]], ids=str)
async def test_outputs_of_several_feeds_equal_the_module_alone_on_each(balance: list[int]) -> None:
    """However feeds interleave and the module is cut, each feed sees a module of its own."""
    module = recurrent()
    sources = [frames(12, seed) for seed in range(3)]

    async def client(pipeline: pa.Pipeline, values: Sequence[Tensor]) -> list[Tensor]:
        return [result.output async for result in pipeline.stream(values) if isinstance(result.output, Tensor)]

    async with pipeline_of(module, balance=balance) as pipeline:
        found = await asyncio.gather(*(client(pipeline, values) for values in sources))
    for got, values in zip(found, sources, strict=True):
        assert_same(got, alone(module, values))


async def test_process_frames_share_one_state_until_it_is_reset() -> None:
    """What is given to process is one feed, and starts over on demand; an open feed is left alone."""
    module, values = recurrent(), frames(6)
    async with pipeline_of(module, balance=[2, 3]) as pipeline, pipeline.feed() as feed:
        await feed.put(values[0])
        first = [(await pipeline.process(value)).output for value in values[:3]]
        pipeline.reset_state()
        second = [(await pipeline.process(value)).output for value in values[3:]]
        beside = [(await anext(feed)).output, *await outputs(feed, values[1:2])]
    assert_same([*first, *second], [*alone(module, values[:3]), *alone(module, values[3:])])  # type: ignore[list-item]
    assert_same(beside, alone(module, values[:2]))  # type: ignore[arg-type]


async def test_reset_lies_between_the_frames_put_before_and_after_it() -> None:
    """Frames that wait already when the reset comes still belong to the time before it."""
    module, values = recurrent(), frames(8)
    async with pipeline_of(module, balance=[2, 3]) as pipeline, pipeline.feed(capacity=8) as feed:
        for value in values[:5]:
            feed.put_nowait(value)
        feed.reset_state()
        for value in values[5:]:
            feed.put_nowait(value)
        found = [(await anext(feed)).output for _ in values]
    assert_same(found, [*alone(module, values[:5]), *alone(module, values[5:])])  # type: ignore[arg-type]


@pytest.mark.parametrize("overflow", ["latest", "drop_oldest", "drop_newest", "fail"])
async def test_reset_holds_when_the_frame_behind_it_is_dropped(overflow: str) -> None:
    """A reset belongs to the feed, whatever becomes of the frame that came right behind it."""
    module, values = recurrent(), frames(4)
    async with pipeline_of(module, balance=[2, 3]) as pipeline, pipeline.feed(overflow=overflow, capacity=1) as feed:
        await outputs(feed, values[:1])
        is_newest_kept = overflow in ("latest", "drop_oldest")
        if not is_newest_kept:
            feed.put_nowait(values[1])  # takes the only place: what follows is refused
        feed.reset_state()
        try:
            feed.put_nowait(values[2])
        except pa.FeedFull:
            assert overflow == "fail"
        if is_newest_kept:
            feed.put_nowait(values[3])  # pushes the one before out
            found = [(await anext(feed)).output]
        else:
            await anext(feed)
            found = [*await outputs(feed, values[3:])]
        assert feed.statistics().frames.dropped_total == 1
    assert_same(found, alone(module, values[3:]))  # type: ignore[arg-type]


async def test_reset_holds_when_the_frame_behind_it_is_invalid_stale_or_cancelled() -> None:
    """Also frames that never get as far as the queue, or leave it by age, do not take the reset with them."""
    module, values = recurrent(), frames(5)
    async with pipeline_of(module, balance=[2, 3]) as pipeline, pipeline.feed(max_age_s=60.0, capacity=1) as feed:
        await outputs(feed, values[:1])
        feed.reset_state()
        with pytest.raises(pa.FrameError):
            await feed.put(torch.zeros(2, WIDTH))
        await feed.put(values[1], captured_at=0.001)  # ages ago
        await feed.put(values[2], captured_at=0.001)
        putting = asyncio.ensure_future(feed.put(values[3]))
        await asyncio.sleep(0)
        putting.cancel()
        await asyncio.wait([putting])
        if not putting.cancelled():
            await anext(feed)  # it had its place already
            return
        assert_same(await outputs(feed, values[4:]), alone(module, values[4:]))


@pytest.mark.parametrize("balance", [[3], [1, 2], [2, 1], [1, 1, 1]], ids=str)
async def test_failing_frame_leaves_the_states_that_the_module_itself_would_have(balance: list[int]) -> None:
    """The layers before the one that raised have seen the frame, the others have not, wherever the cuts are."""
    module = nn.Sequential(Tally(), Tally(limit=2.5), Tally())
    values = [torch.full((1, WIDTH), number) for number in (1.0, 1.0, 5.0, -5.0, 1.0)]
    own = copy.deepcopy(module)
    expected: list[Tensor | None] = []
    for value in values:
        try:
            expected.append(own(value))
        except ValueError:
            expected.append(None)
    assert None in expected
    async with pipeline_of(module, balance=balance) as pipeline, pipeline.feed(capacity=8) as feed:
        for value in values:
            feed.put_nowait(value)
        found = [await anext(feed) for _ in values]
    for result, right in zip(found, expected, strict=True):
        assert (result.error is not None) == (right is None)
        if right is not None:
            assert isinstance(result.output, Tensor)
            assert torch.equal(result.output, right)


async def test_reset_reaches_every_stage_although_its_frame_failed_in_the_first() -> None:
    """Stages that a failed frame never came to start over as well."""
    module = nn.Sequential(Tally(limit=100.0), Tally())
    values = [torch.full((1, WIDTH), number) for number in (1.0, 2.0, 200.0, 3.0)]
    async with pipeline_of(module, balance=[1, 1]) as pipeline, pipeline.feed(capacity=4) as feed:
        await outputs(feed, values[:2])
        feed.reset_state()
        feed.put_nowait(values[2])
        feed.put_nowait(values[3])
        failed, last = await anext(feed), await anext(feed)
    assert failed.error is not None
    assert isinstance(last.output, Tensor)
    # The first layer's sum was reset, and the failed frame never came into it; nor into the second's.
    assert float(last.output[0, 0]) == 3.0


async def test_states_are_released_with_their_feeds() -> None:
    """Hundreds of feeds that come and go leave nothing behind while the pipeline runs on."""
    module, values = recurrent(), frames(2)
    async with pipeline_of(module, balance=[2, 3]) as pipeline:
        for number in range(150):
            async with pipeline.feed() as feed:
                await feed.put(values[0])
                if number % 3:
                    await anext(feed)  # some are left with unread results
        await pipeline.process(values[0])
        await pipeline.state_dict()  # behind everything that was enqueued before
        assert [len(keeper) for keeper in keepers(pipeline) if keeper] == [1, 1]
    assert [len(keeper) for keeper in keepers(pipeline)] == [0, 0]


async def test_states_of_an_aborted_feed_are_released_when_its_frames_have_landed() -> None:
    """Leaving a feed by an exception lets go of its states too, behind the frames still in flight."""
    module = recurrent()
    async with pipeline_of(module, balance=[2, 3]) as pipeline:
        with pytest.raises(KeyError):
            await _broken_off(pipeline.feed(capacity=4))
        await pipeline.process(frames(1)[0])
        await pipeline.state_dict()
        assert [len(keeper) for keeper in keepers(pipeline) if keeper] == [1, 1]


async def _broken_off(feed: pa.Feed) -> None:
    async with feed:
        for value in frames(4):
            feed.put_nowait(value)
        await asyncio.sleep(0)
        raise KeyError


async def test_pipeline_entered_again_starts_with_fresh_states() -> None:
    """Weights last from one run to the next, what was remembered of the frames does not."""
    module, values = recurrent(), frames(3)
    pipeline = pipeline_of(module, balance=[2, 3])
    for _ in range(2):
        async with pipeline:
            found = [(await pipeline.process(value)).output for value in values]
        assert_same(found, alone(module, values))  # type: ignore[arg-type]


async def test_module_that_ran_before_is_neither_touched_nor_inherited_from() -> None:
    """A module with a state, even one with a graph, is copied without it and keeps it."""
    module, values = recurrent(), frames(4)
    module(values[0])  # with gradients: its state hangs on a graph
    before = [layer.state for layer in stateful_layers(module)]
    assert any(isinstance(state, Tensor) and state.grad_fn is not None for state in before)
    async with pipeline_of(module, balance=[2, 3]) as pipeline:
        found = [(await pipeline.process(value)).output for value in values[1:]]
    assert all(left is right.state for left, right in zip(before, stateful_layers(module), strict=True))
    assert_same(found, alone(module, values[1:]))  # type: ignore[arg-type]


def test_profiling_leaves_no_state() -> None:
    """Layers that were measured remember none of it."""
    layers = chain(recurrent(), EXAMPLE)
    profile.profile(layers, EXAMPLE, budget_s=0.01)
    assert all(layer.state is None for layer in stateful_layers(layers.slice(0, len(layers))))


def test_planning_leaves_no_state() -> None:
    """Layers that raced to find the best plan remember none of it."""
    request = Request.checked(recurrent(), EXAMPLE, stages=None, balance=None, devices=None, capture=True)
    layers, _, _ = draw_up(request)
    assert all(layer.state is None for layer in stateful_layers(layers.slice(0, len(layers))))


async def test_swapped_weights_leave_the_states() -> None:
    """New weights go on from what was remembered, as in the module itself."""
    module, values = recurrent(), frames(6)
    other = recurrent(seed=1).state_dict()
    async with pipeline_of(module, balance=[2, 3]) as pipeline:
        found = [(await pipeline.process(value)).output for value in values[:3]]
        await pipeline.load_state_dict(other)
        found += [(await pipeline.process(value)).output for value in values[3:]]
    own = copy.deepcopy(module)
    with torch.no_grad():
        expected = [own(value) for value in values[:3]]
        own.load_state_dict(other)
        expected += [own(value) for value in values[3:]]
    assert_same(found, expected)  # type: ignore[arg-type]


async def test_state_that_is_the_input_survives_a_caller_who_reuses_the_buffer() -> None:
    """A frame is the caller's again when its result is there; what a layer kept of it is not."""
    async with pipeline_of(nn.Sequential(Delay(), nn.Identity()), balance=[1, 1]) as pipeline:
        frame = torch.full((1, WIDTH), 1.0)
        await pipeline.process(frame)
        frame.fill_(2.0)
        result = await pipeline.process(frame)
    assert torch.equal(torch.as_tensor(result.output), torch.full((1, WIDTH), 1.0))


async def test_state_that_is_the_output_survives_a_caller_who_writes_into_the_result() -> None:
    """A result is the caller's; the state of the layer that made it is not."""
    async with pipeline_of(nn.Sequential(nn.Identity(), Tally()), balance=[1, 1]) as pipeline:
        for expected in (1.0, 2.0, 3.0):
            result = await pipeline.process(torch.ones(1, WIDTH))
            assert isinstance(result.output, Tensor)
            assert float(result.output[0, 0]) == expected
            result.output.zero_()


async def test_traced_network_keeps_a_stateful_layer_whole_and_may_be_cut_around_it() -> None:
    """In a network that is no Sequential, too, a layer that remembers is one layer with a cut on either side."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.memory = Gru(WIDTH)
            self.last = nn.Linear(WIDTH, WIDTH)

        def forward(self, value: Tensor) -> Tensor:
            result: Tensor = self.last(torch.relu(self.memory(self.first(value))))
            return result

    module, values = Residual(), frames(5)
    names = chain(module, EXAMPLE).names
    assert names.count("memory") == 1
    at = names.index("memory")
    async with pipeline_of(module, balance=[at, 1, len(names) - at - 1]) as pipeline:
        found = [(await pipeline.process(value)).output for value in values]
    assert_same(found, alone(module, values))  # type: ignore[arg-type]


async def test_layer_without_the_two_methods_is_refused_when_entering() -> None:
    """What a subclass forgot is said with its name before any frame flows."""
    for missing, module in (("initial_state", pa.Stateful()), ("step", Half())):
        with pytest.raises(pa.PartimeError, match=missing):
            async with pipeline_of(nn.Sequential(nn.Linear(WIDTH, WIDTH), module), stages=1):
                pass


class Half(pa.Stateful):
    """Has a first state and no step."""

    def initial_state(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(1)


class Writes(pa.Stateful):
    """Writes into its state."""

    def initial_state(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(1, WIDTH)

    def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
        """Add in place."""
        assert isinstance(value, Tensor)
        assert isinstance(state, Tensor)
        return value, state.add_(value)


class Wrong(Half):
    """Has a state that is no tensor."""

    def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
        """Return a number for a state."""
        return value, 3  # type: ignore[return-value]


def test_step_that_writes_into_its_state_raises_configuration_error() -> None:
    """Frames that wait for their gradient may still need the state: a write in place is caught where it happens."""
    with pytest.raises(pa.ConfigurationError, match=r"Writes\.step\(\) wrote into the state"):
        Writes()(torch.zeros(1, WIDTH))


def test_state_that_is_no_tensor_raises_configuration_error() -> None:
    """A state is a tensor or a flat tuple of tensors."""
    with pytest.raises(pa.ConfigurationError, match=r"Wrong\.step\(\) gave a int"):
        Wrong()(torch.zeros(1, WIDTH))


def test_initial_state_is_moved_to_where_the_frame_is() -> None:
    """A first state made on the CPU serves a layer on any device."""
    layer = Delay()
    layer(torch.zeros(1, WIDTH, device="meta"))
    assert layer(torch.zeros(1, WIDTH, device="meta")).device.type == "meta"
    assert isinstance(layer.state, tuple)
    assert {tensor.device.type for tensor in layer.state} == {"meta"}


def test_copy_and_pickle_of_a_layer_start_without_its_state() -> None:
    """What a layer remembers hangs on frames that its copy never saw."""
    layer = Tally()
    layer(torch.ones(1, WIDTH))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert layer.state is not None
        assert other.state is None
    layer.reset_state()
    assert layer.state is None


def test_state_dict_holds_no_state_of_the_frames() -> None:
    """What is remembered of a feed is no weight."""
    layer = Gru(WIDTH)
    keys = list(layer.state_dict())
    layer(torch.zeros(1, WIDTH))
    assert list(layer.state_dict()) == keys


def test_states_of_puts_back_what_the_layers_had() -> None:
    """Lending states to layers for a moment leaves no trace, also when the moment ends by an exception."""
    layer = Tally()
    layer.state = torch.ones(1)
    with pytest.raises(IndexError), states_of([layer], (torch.zeros(1),)):
        layer(torch.ones(1))[2]
    assert float(torch.as_tensor(layer.state)) == 1.0


# -- learning -----------------------------------------------------------------------------------------------------

SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.5)


async def learned(
    module: nn.Module, learner: pa.Learner, values: Sequence[Tensor], targets: Sequence[Tensor], balance: Sequence[int]
) -> tuple[dict[str, Tensor], list[float]]:
    """Return the weights, and the losses, after a stream."""
    pipeline = pa.Pipeline(module, EXAMPLE, balance=balance, devices=["cpu"], learner=learner)
    losses = []
    async with pipeline:
        async for result in pipeline.stream(list(zip(values, targets, strict=True))):
            assert result.loss is not None
            losses.append(result.loss)
    return await pipeline.state_dict(), losses


@pytest.mark.parametrize("balance", [[5], [2, 3], [1, 1, 1, 1, 1]], ids=str)
async def test_exact_learning_equals_a_training_loop_that_detaches_the_state(balance: list[int]) -> None:
    """With the rule exact, layers that remember learn bit for bit as in a loop that cuts the graph at each frame."""
    module, values, targets = recurrent(), frames(20), frames(20, 9)
    learner = pa.Learner(nn.functional.mse_loss, SGD, rule=pa.rules.exact())
    found, losses = await learned(module, learner, values, targets, balance)
    own = copy.deepcopy(module)
    optimizer = SGD(own.parameters())
    expected = []
    for value, target in zip(values, targets, strict=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(own(value), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        expected.append(float(loss.detach()))
        for layer in stateful_layers(own):
            assert layer.state is not None
            states = (layer.state,) if isinstance(layer.state, Tensor) else layer.state
            kept = tuple(state.detach() for state in states)
            layer.state = kept[0] if isinstance(layer.state, Tensor) else kept
    assert losses == expected
    for name, tensor in own.state_dict().items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("lag", [1, 2])
async def test_replay_does_the_forward_pass_again_with_the_state_of_its_own_frame(lag: int) -> None:
    """While the weights stand still, replayed gradients are bit for bit those of the kept graphs."""
    values, targets = frames(12), frames(12, 9)
    gradients: dict[str, list[Tensor]] = {}
    for graph in ("stash", "replay"):
        seen: list[list[Tensor]] = [[], []]

        def look(stage: int, parameters: Sequence[nn.Parameter], seen: list[list[Tensor]] = seen) -> None:
            seen[stage] += [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]

        learner = pa.Learner(
            nn.functional.mse_loss,
            functools.partial(torch.optim.SGD, lr=0.0),
            rule=pa.UpdateRule(graph, lag),
            gradient_hook=look,
        )
        await learned(recurrent(), learner, values, targets, [3, 2])
        gradients[graph] = [*seen[0], *seen[1]]
    assert len(gradients["stash"]) > 20
    assert_same(gradients["replay"], gradients["stash"])


@pytest.mark.parametrize("rule", [pa.rules.pipedream(), pa.rules.partime(), pa.rules.replay()], ids=str)
async def test_learning_is_the_same_on_every_run_and_keeps_no_graph(rule: pa.UpdateRule) -> None:
    """States of two interleaved feeds carry no history from frame to frame, and timing changes no bit."""
    weights = []
    for _ in range(2):
        learner = pa.Learner(nn.functional.mse_loss, SGD, rule=rule)
        pipeline = pa.Pipeline(recurrent(), EXAMPLE, balance=[2, 3], devices=["cpu"], learner=learner)
        async with pipeline, pipeline.feed(capacity=1) as one, pipeline.feed(capacity=1) as other:
            for number, value in enumerate(frames(16)):
                feed = one if number % 3 else other
                await feed.put(value, target=torch.zeros(1, WIDTH))
                await anext(feed)
            await pipeline.state_dict()
            for keeper in keepers(pipeline):
                for kept in keeper._kept.values():
                    for state in kept.states:
                        parts = (state,) if isinstance(state, Tensor) else state
                        assert parts is not None
                        assert not any(part.requires_grad for part in parts)
        weights.append(await pipeline.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor)


async def test_gru_learns_what_only_its_memory_can_know() -> None:
    """The target is the frame before: unlearnable without a state, and the loss falls well below that of guessing."""
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(WIDTH, 24), Gru(24), nn.Linear(24, 1))
    signs = torch.randint(0, 2, (400,)).float() * 2 - 1
    values = [sign.expand(1, WIDTH).clone() for sign in signs]
    targets = [signs[max(0, number - 1)].reshape(1, 1) for number in range(len(values))]
    optimizer = functools.partial(torch.optim.Adam, lr=0.003)
    learner = pa.Learner(nn.functional.mse_loss, optimizer)
    _, losses = await learned(module, learner, values, targets, [1, 1, 1])
    assert sum(losses[-100:]) / 100 < 0.3  # guessing gives 1.0


async def test_frame_whose_loss_raises_has_been_seen_by_the_layers() -> None:
    """A loss is no layer: the frame fails, and the states behind it are those of the module, which ran."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if float(target[0, 0]) > 1.0:
            raise ValueError("no such target")
        return nn.functional.mse_loss(output, target)

    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), Tally())
    learner = pa.Learner(loss, functools.partial(torch.optim.SGD, lr=0.0), rule=pa.rules.exact())
    values = frames(3)
    async with pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        await pipeline.process(values[0], torch.zeros(1, WIDTH))
        with pytest.raises(pa.StageError, match="no such target"):
            await pipeline.process(values[1], torch.full((1, WIDTH), 2.0))
        last = await pipeline.process(values[2], torch.zeros(1, WIDTH))
    assert isinstance(last.output, Tensor)
    assert torch.equal(last.output, alone(module, values)[2])
