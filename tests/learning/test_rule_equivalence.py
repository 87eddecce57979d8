"""Promise 1, for learning: every update rule gives the weights of the reference, bit for bit, whatever the timing."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import random
from collections.abc import Sequence

import pytest
import torch
import uvloop
from torch import Tensor, nn

import partime_async as pa
from partime_async.models.resnet import Add, Fork, OnMain, OnShortcut
from tests.learning.reference import History, simulate
from tests.learning.school import (
    ADAM,
    MOMENTUM,
    OPTIMIZERS,
    RULES,
    SGD,
    WIDTH,
    Delays,
    Taught,
    Value,
    assert_as_defined,
    assert_same_weights,
    blocks,
    lessons,
    mse,
    plain,
    teach,
)
from tests.nets import Swap, assert_same_bits
from tests.stateful_nets import Gru, Lstm

GRAPHS = ("current", "stash", "replay")
LAGS = (0, 1, 2, 3)
STAGES = (1, 2, 3, 4, 8)
CASES = list(itertools.product(GRAPHS, LAGS, STAGES, OPTIMIZERS))


def _is_quick(case: tuple[str, int, int, str]) -> bool:
    """Whether a case belongs to the third of them in which every two choices meet."""
    places = (GRAPHS.index(case[0]), case[1], STAGES.index(case[2]), list(OPTIMIZERS).index(case[3]))
    return sum(places) % 3 == 0


def _even(layers: int, stages: int) -> list[int]:
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]


@functools.cache
def _expected(graph: str, lag: int, stages: int, optimizer: str) -> History:
    frames, targets = lessons(_length(lag, stages))
    learner = pa.Learner(mse, OPTIMIZERS[optimizer], rule=pa.UpdateRule(graph, lag))
    return simulate(_net(stages), _even(max(4, stages), stages), frames, targets, plain(learner))


def _length(lag: int, stages: int) -> int:
    return lag * (stages - 1) + 6


def _net(stages: int, delays: Delays | None = None) -> nn.Sequential:
    torch.manual_seed(stages)
    return blocks(max(4, stages), delays)


async def _check(graph: str, lag: int, stages: int, optimizer: str) -> None:
    chosen = random.Random(hash((graph, lag, stages, optimizer)))
    frames, targets = lessons(_length(lag, stages))
    taught = await teach(
        _net(stages, Delays(lag + stages)),
        _even(max(4, stages), stages),
        frames,
        targets,
        pa.Learner(mse, OPTIMIZERS[optimizer], rule=pa.UpdateRule(graph, lag)),
        capacity=chosen.choice((1, 2, 5)),
        depth=chosen.choice((None, 1, 2, 4)),
    )
    history = _expected(graph, lag, stages, optimizer)
    assert {update.stage for update in taught.updates} == set(range(stages)), "a stage has learned nothing"
    assert_as_defined(taught, history)


@pytest.mark.parametrize(("graph", "lag", "stages", "optimizer"), [case for case in CASES if _is_quick(case)])
async def test_weights_of_every_rule_at_random_delays_equal_the_reference(
    graph: str, lag: int, stages: int, optimizer: str
) -> None:
    """Weights, losses, weight versions and the trace of updates are those of the definition, whatever the timing."""
    await _check(graph, lag, stages, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "lag", "stages", "optimizer"), [case for case in CASES if not _is_quick(case)])
def test_weights_of_every_other_combination_equal_the_reference(
    graph: str, lag: int, stages: int, optimizer: str
) -> None:
    """The combinations that the test before leaves out do the same, on one event loop or the other."""
    loop = asyncio.new_event_loop if stages % 2 else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_check(graph, lag, stages, optimizer))


async def _compared(
    net: nn.Sequential,
    balance: Sequence[int],
    lessons_of: tuple[list[Value], list[Value | None]],
    learner: pa.Learner,
    *,
    looked_at: Sequence[int] = (),
) -> Taught:
    frames, targets = lessons_of
    history = simulate(net, balance, frames, targets, plain(learner))
    before = copy.deepcopy((frames, net.state_dict(), torch.random.get_rng_state()))
    taught = await teach(net, balance, frames, targets, learner, looked_at=looked_at)
    assert_same_bits(frames, before[0])
    assert_same_weights(net.state_dict(), before[1], "in the caller's own module")
    assert torch.equal(torch.random.get_rng_state(), before[2]), "the default generator was touched"
    assert_as_defined(taught, history)
    return taught


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stages", [1, 2, 4])
async def test_exact_rule_on_any_cut_equals_an_ordinary_training_loop(stages: int, optimizer: str) -> None:
    """`exact` gives the weights of a training loop as anybody writes it, bit for bit."""
    frames, targets = lessons(10)
    net = _net(stages)
    learner = pa.Learner(mse, OPTIMIZERS[optimizer], rule=pa.rules.exact())
    taught = await teach(net, _even(4, stages), frames, targets, learner)
    own = copy.deepcopy(net)
    trainer = OPTIMIZERS[optimizer](own.parameters())
    for frame, target in zip(frames, targets, strict=True):
        if target is not None:
            trainer.zero_grad()
            loss = mse(own(frame), target)
            torch.autograd.backward(loss)
            trainer.step()
    assert_same_weights(taught.weights[9], own.state_dict())


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_reference_with_one_more_lag_gives_other_weights(graph: str, lag: int) -> None:
    """The comparison tells lags apart: with one more, no stage but the last has the same weights."""
    frames, targets = lessons(14)
    ends = []
    for each in (lag, lag + 1):
        learner = pa.Learner(mse, SGD, rule=pa.UpdateRule(graph, each))
        ends.append(simulate(_net(3), [2, 1, 1], frames, targets, plain(learner)).weights[-1])
    one, more = ends
    assert not any(torch.equal(one[name], more[name]) for name in one)


@pytest.mark.parametrize("graph", GRAPHS[1:])
def test_reference_of_another_graph_gives_other_weights(graph: str) -> None:
    """The comparison tells graphs apart."""
    frames, targets = lessons(14)
    ends = []
    for each in (GRAPHS[0], graph, {"stash": "replay", "replay": "stash"}[graph]):
        learner = pa.Learner(mse, SGD, rule=pa.UpdateRule(each, 2))
        ends.append(simulate(_net(3), [2, 1, 1], frames, targets, plain(learner)).weights[-1]["0.linear.weight"])
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_weights_seen_after_every_frame_equal_the_reference(rule: pa.UpdateRule) -> None:
    """The state_dict between any two frames is the definition's, not only that at the end."""
    await _compared(blocks(3), [1, 1, 1], lessons(12), pa.Learner(mse, SGD, rule=rule), looked_at=range(12))


def _batch(count: int, seed: int = 2) -> tuple[list[Value], list[Value | None]]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(4, WIDTH, generator=generator) for _ in range(2 * count)]
    return [*made[:count]], [*made[count:]]


class Norm(nn.BatchNorm1d):
    """Batch normalisation with less to write."""

    def __init__(self) -> None:
        super().__init__(WIDTH)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_batch_norm_under_any_rule_counts_every_frame_once(rule: pa.UpdateRule, is_training: bool) -> None:
    """Statistics move once per frame, in its order, also when a forward pass is done again."""
    net = nn.Sequential(Block5(), Norm(), nn.ReLU(), Block5(), Norm(), Block5()).train(is_training)
    taught = await _compared(net, [2, 2, 2], _batch(10), pa.Learner(mse, MOMENTUM, rule=rule))
    assert int(taught.weights[9]["1.num_batches_tracked"]) == (10 if is_training else 0)


def Block5() -> nn.Module:  # noqa: N802  # stands where a class stands
    """Make a linear layer that keeps the width."""
    return nn.Linear(WIDTH, WIDTH)


class Noise(nn.Module):
    """Adds noise of its own making to its input."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input with noise."""
        return value + 0.1 * torch.randn_like(value) * torch.rand(1)


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_layers_that_draw_under_any_rule_draw_the_same_numbers_at_any_timing(rule: pa.UpdateRule) -> None:
    """Every stage draws from its own generator, and draws a frame's numbers again when it is done again."""
    delays = Delays()
    net = nn.Sequential(*blocks(1, delays), nn.Dropout(0.4), *blocks(1, delays), nn.Dropout(0.2), Noise(), Block5())
    await _compared(net, [2, 2, 2], _batch(10), pa.Learner(mse, SGD, rule=rule))


class RunningMean(nn.Module):
    """Keeps statistics by writing into its buffer, and multiplies by them: a graph needs those of its own frame."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(1, WIDTH))
        self.factor = nn.Parameter(torch.ones(1, WIDTH))

    def forward(self, value: Tensor) -> Tensor:
        """Return the input times the running mean of its size."""
        with torch.no_grad():
            self.scale.mul_(0.9).add_(0.1 * value.abs())
        return value * self.scale * self.factor


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_buffers_written_in_place_do_not_disturb_graphs_that_wait(rule: pa.UpdateRule) -> None:
    """A layer may write into its buffers at every frame while graphs of earlier ones still need them."""
    net = nn.Sequential(Block5(), RunningMean(), Block5(), RunningMean(), Block5())
    await _compared(net, [2, 2, 1], lessons(10), pa.Learner(mse, SGD, rule=rule))


class Counted(nn.Module):
    """From a tensor to the tensor, an integer and a constant, which get no gradient."""

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input, where it is positive, and something that depends on nothing."""
        return value, (value > 0).long(), torch.ones(1, WIDTH)


class Mixed(nn.Module):
    """From the tuple of `Counted` back to a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, WIDTH)
        self.linear = Block5()

    def forward(self, values: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return a mix of all."""
        value, places, _ = values
        mixed: Tensor = self.linear(value) + self.table(places).sum(dim=1)
        return mixed


class Tied(nn.Module):
    """Two places with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, turned twice by the same weight."""
        turned: Tensor = self.second(torch.tanh(self.first(value)))
        return turned


class Remembering(nn.Module):
    """A recurrent net over one frame: PyTorch's own keeps a list of its weights beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, value: Tensor) -> Tensor:
        """Return what it makes of the frame as a sequence of one."""
        output: Tensor = self.gru(value.unsqueeze(1))[0].squeeze(1)
        return output


def _frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


NETS = {
    "a stage without weights": lambda: nn.Sequential(Block5(), nn.Tanh(), nn.ReLU(), Block5()),
    "no weights behind the first": lambda: nn.Sequential(Block5(), Block5(), nn.Tanh(), nn.Identity()),
    "frozen weights": lambda: nn.Sequential(Block5(), _frozen(Block5()), Block5(), _frozen(Block5())),
    "a whole stage is frozen": lambda: nn.Sequential(_frozen(Block5()), Block5(), _frozen(Block5()), Block5()),
    "tied weights": lambda: nn.Sequential(Block5(), Tied(), Tied(), Block5()),
    "tuples, integers, constants": lambda: nn.Sequential(Block5(), Counted(), Mixed(), Block5()),
    "the first layer writes": lambda: nn.Sequential(nn.ReLU(inplace=True), Block5(), nn.ReLU(inplace=True), Tied()),
    "PyTorch's recurrent net": lambda: nn.Sequential(Block5(), Remembering(), Remembering(), Block5()),
    "layers that remember": lambda: nn.Sequential(Block5(), Gru(WIDTH), Lstm(WIDTH), Block5()),
    "weight norm": lambda: nn.Sequential(
        *(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)) for _ in range(4))
    ),
}


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("name", NETS)
async def test_net_of_any_kind_learns_as_defined(name: str, rule: pa.UpdateRule) -> None:
    """What crosses a cut, where the weights are, and what kind of layer holds them makes no difference."""
    await _compared(NETS[name](), [1, 2, 1], lessons(9), pa.Learner(mse, MOMENTUM, rule=rule, clip_norm=0.3))


def _squares(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert not isinstance(output, Tensor)
    left, right = output
    return ((left * right).mean() - 1.0) ** 2


class PairOfWeights(nn.Module):
    """Multiplies both halves of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1, WIDTH))

    def forward(self, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both, multiplied."""
        return values[0] * self.factor, values[1] * self.factor


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_pairs_at_both_ends_learn_as_defined(rule: pa.UpdateRule) -> None:
    """A frame, an output and what crosses every cut may be tuples, and one half may pass a stage untouched."""
    net = nn.Sequential(PairOfWeights(), Swap(), PairOfWeights(), Swap())
    frames: list[Value] = [(left, left * 0.5 + 1.0) for left in torch.randn(8, 1, WIDTH)]
    learner = pa.Learner(_squares, SGD, rule=rule, unsupervised=True)
    await _compared(net, [1, 1, 2], (frames, [None] * 8), learner)


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_flat_residual_net_learns_as_defined(rule: pa.UpdateRule) -> None:
    """A residual net written as a Sequential of tuples learns on both its branches."""
    net = nn.Sequential(Fork(), OnShortcut(Block5()), OnMain(Block5()), OnMain(nn.ReLU()), OnMain(Block5()), Add())
    await _compared(net, [2, 2, 2], lessons(9), pa.Learner(mse, ADAM, rule=rule))


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_several_feeds_together_teach_in_the_order_of_admission(rule: pa.UpdateRule) -> None:
    """With two clients at once, the weights are those of the definition for the order that the results name."""
    net, learner = blocks(3, Delays()), pa.Learner(mse, SGD, rule=rule)
    frames, targets = lessons(24)
    order: dict[int, int] = {}
    async with pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=learner) as pipeline:

        async def client(numbers: Sequence[int]) -> None:
            async with pipeline.feed() as feed:
                for number in numbers:
                    await feed.put(frames[number], targets[number], context=number)
                feed.close()
                async for result in feed:
                    assert isinstance(result.context, int)
                    order[result.index] = result.context

        async with asyncio.TaskGroup() as group:
            for numbers in (range(4), range(4, 8)):
                group.create_task(client(numbers))
    chosen = [order[index] for index in sorted(order)]
    history = simulate(
        net, [1, 1, 1], [frames[each] for each in chosen], [targets[each] for each in chosen], plain(learner)
    )
    assert sorted(chosen) == list(range(8))
    assert_same_weights(await pipeline.state_dict(), history.weights[-1])
