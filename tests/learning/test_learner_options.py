"""The options of a learner: each does what it says, and one that cannot be is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, ReduceLROnPlateau

import partime_async as pa
from partime_async.learning.learner import Loss, OptimizerFactory
from tests.learning.reference import simulate
from tests.learning.school import (
    ADAM,
    RULES,
    SGD,
    WIDTH,
    Delays,
    assert_as_defined,
    assert_same_weights,
    blocks,
    lessons,
    mse,
    plain,
    stage_learners,
    teach,
)

BAD: dict[str, dict[str, object]] = {
    "loss is float": {"loss": 0.5},
    "optimizer is SGD, which cannot be called": {"optimizer": torch.optim.SGD([torch.ones(1)])},
    "rule is 'pipedream'": {"rule": "pipedream"},
    "non_finite is 'ignore'": {"non_finite": "ignore"},
    "label_delay is -1": {"label_delay": -1},
    r"label_delay is 1\.5": {"label_delay": 1.5},
    "there are no labels": {"label_delay": 1, "unsupervised": True},
    r"clip_norm is 0\.0": {"clip_norm": 0.0},
    "clip_norm is inf": {"clip_norm": math.inf},
}


@pytest.mark.parametrize("told", BAD)
def test_learner_with_an_option_that_cannot_be_is_refused(told: str) -> None:
    """The error names the option, its value and what would do."""
    with pytest.raises(pa.ConfigurationError, match=told):
        pa.Learner(**{"loss": mse, "optimizer": SGD, **BAD[told]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("graph", "lag", "told"), [("newest", 1, "newest"), ("stash", -1, "-1"), ("stash", True, "True")]
)
def test_update_rule_that_does_not_exist_is_refused(graph: str, lag: int, told: str) -> None:
    """A graph that is unknown and a lag that is no number of frames are told by their values."""
    with pytest.raises(pa.ConfigurationError, match=told):
        pa.UpdateRule(graph, lag)


def test_presets_are_the_rules_of_their_papers() -> None:
    """The names stand for the graphs and lags of the design; the default is `pipedream`."""
    assert pa.rules.pipedream() == pa.UpdateRule("stash", 1) == pa.Learner(mse, SGD).rule
    assert pa.rules.partime() == pa.UpdateRule("current", 2)
    assert pa.rules.replay() == pa.UpdateRule("replay", 1)
    assert pa.rules.exact().lag == 0
    assert [pa.rules.partime().delay(stage, 4) for stage in range(4)] == [6, 4, 2, 0]


async def _taught_as_defined(learner: pa.Learner) -> list[pa.Update]:
    delays = Delays()
    net = blocks(3, delays)
    frames, targets = lessons(12, missing=0.1)
    taught = await teach(net, [1, 1, 1], frames, targets, learner)
    delays.is_on = False
    assert_as_defined(taught, simulate(net, [1, 1, 1], frames, targets, plain(learner)))
    assert {update.stage for update in taught.updates} == {0, 1, 2}
    return taught.updates


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_clip_norm_scales_each_stage_s_gradient_and_not_what_it_passes_on(rule: pa.UpdateRule) -> None:
    """A stage clips its own gradient; the gradient that it emits is that of the loss, though both were one tensor."""
    updates = await _taught_as_defined(pa.Learner(mse, SGD, rule=rule, clip_norm=0.1))
    assert max(update.gradient_norm for update in updates) > 0.1


@pytest.mark.parametrize("make", [partial(ExponentialLR, gamma=0.7), partial(CosineAnnealingLR, T_max=5)])
async def test_scheduler_moves_each_stage_s_rate_by_its_own_steps(make: type[ExponentialLR]) -> None:
    """A stage that has stepped less often is at an earlier point of its schedule."""
    await _taught_as_defined(pa.Learner(mse, ADAM, scheduler=make))


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_gradient_hook_sees_and_changes_what_is_applied(rule: pa.UpdateRule) -> None:
    """The hook gets the stage's number and its parameters with their gradients, before they are clipped."""
    seen: set[int] = set()

    def hook(stage: int, parameters: Sequence[nn.Parameter]) -> None:
        seen.add(stage)
        assert len(parameters) == 3
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(-2.0)
        parameters[2].grad = None

    await _taught_as_defined(pa.Learner(mse, SGD, rule=rule, gradient_hook=hook, clip_norm=0.3))
    assert seen == {0, 1, 2}


async def test_gradient_hook_that_takes_all_gradients_away_prevents_the_step() -> None:
    """No gradient is no step: neither momentum nor weight decay goes on."""

    def hook(_: int, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None

    frames, targets = lessons(6, missing=0.0)
    net = blocks(2)
    optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)
    taught = await teach(net, [1, 1], frames, targets, pa.Learner(mse, optimizer, gradient_hook=hook))
    assert not taught.updates
    assert_same_weights(taught.weights[5], net.state_dict())


async def test_optimizer_is_made_once_per_stage_of_its_trainable_parameters() -> None:
    """The factory gets the parameters of one stage; a stage without any gets no optimiser."""
    sizes: list[int] = []

    def factory(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        own = list(params)
        sizes.append(len(own))
        return torch.optim.SGD(own, lr=0.1)

    net = nn.Sequential(*blocks(2), nn.Tanh(), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH))
    net[4].requires_grad_(False)
    frames, targets = lessons(6, missing=0.0)
    taught = await teach(net, [2, 1, 2], frames, targets, pa.Learner(mse, factory))
    assert sizes == [6, 1]
    assert {update.stage for update in taught.updates} == {0, 2}


@pytest.mark.parametrize("kind", [SGD, ADAM], ids=["SGD", "Adam"])
async def test_weights_that_the_optimizer_was_not_given_stay_as_they_are(kind: OptimizerFactory) -> None:
    """A factory may leave some of the parameters out, also where plain SGD is stepped without the optimiser."""
    frames, targets = lessons(8, missing=0.0)
    net = blocks(3)
    learner = pa.Learner(mse, lambda params: kind(list(params)[:2]))
    taught = await teach(net, [1, 2], frames, targets, learner)
    assert_as_defined(taught, simulate(net, [1, 2], frames, targets, plain(learner)))
    own = net.state_dict()
    moved = {name for name, tensor in taught.weights[7].items() if not torch.equal(tensor, own[name])}
    assert moved == {"0.shift", "0.linear.weight", "1.shift", "1.linear.weight"}


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.SparseAdam, lr=0.1)], ids=["SGD", "SparseAdam"])
async def test_sparse_gradients_of_an_embedding_are_applied(optimizer: OptimizerFactory) -> None:
    """A frame of integers is looked up in a table, whose gradient has values for its rows alone."""
    net = nn.Sequential(nn.Embedding(50, WIDTH, sparse=True), nn.Flatten())
    frames: list[pa.Value] = [torch.randint(0, 50, (1, 4)) for _ in range(8)]
    targets: list[pa.Value | None] = [torch.randn(1, 4 * WIDTH) for _ in range(8)]
    learner = pa.Learner(mse, optimizer)
    taught = await teach(net, [1, 1], frames, targets, learner)
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    moved = taught.weights[7]["0.weight"] != own["0.weight"]
    looked_up = {int(number) for frame in frames[:-1] for number in frame[0].flatten()}
    assert set(moved.any(dim=1).nonzero().flatten().tolist()) == looked_up


class Lazy:
    """What is no optimiser."""

    def __init__(self, params: object) -> None:
        pass


class NeedsMore(torch.optim.SGD):
    """An optimiser whose step needs an argument."""

    def step(self, closure: object, scale: float) -> None:  # type: ignore[override]
        """Need a scale."""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": torch.optim.LBFGS}, "LBFGS cannot be used here: its step needs closure"),
        ({"optimizer": partial(NeedsMore, lr=0.1)}, "its step needs closure, scale"),
        ({"scheduler": ReduceLROnPlateau}, "ReduceLROnPlateau cannot be used here: its step needs metrics"),
        ({"optimizer": Lazy}, "made a Lazy"),
        ({"optimizer": lambda _: SGD([torch.ones(1)])}, r"1 tensor\(s\) that are no weights of the stage"),
        ({"scheduler": lambda optimizer: None}, "made a NoneType"),
    ],
)
async def test_optimizer_or_schedule_that_cannot_step_alone_is_refused_on_entering(
    options: dict[str, object], told: str
) -> None:
    """A closure would run the whole net again, and a metric is the last stage's alone; other weights are not run."""
    learner = pa.Learner(**{"loss": mse, "optimizer": SGD, **options})  # type: ignore[arg-type]
    with pytest.raises(pa.ConfigurationError, match=told):
        async with pa.Pipeline(blocks(2), torch.ones(1, WIDTH), stages=2, learner=learner):
            pass


def _blows_up(output: Tensor, target: Tensor) -> Tensor:
    factor = {1.0: math.nan, 2.0: math.inf}.get(float(target.flatten()[0]), 1.0)
    return (output * factor).pow(2).mean()


def _bends_back(output: Tensor, target: Tensor) -> Tensor:
    # Finite, with a gradient that is not: the root of 0.
    is_bad = float(target.flatten()[0]) == 1.0
    return (output * 0.0).abs().sum().sqrt() if is_bad else mse(output, target)


@pytest.mark.parametrize("loss", [_blows_up, _bends_back])
@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_non_finite_loss_or_gradient_is_skipped_and_counted(rule: pa.UpdateRule, loss: Loss) -> None:
    """It reaches no weight and no optimiser of any stage; the frame's result still carries the loss."""
    frames, _ = lessons(12)
    targets: list[pa.Value | None] = [torch.full((1, WIDTH), 0.0) for _ in frames]
    for bad, value in ((3, 1.0), (6, 2.0), (7, 1.0)):
        targets[bad] = torch.full((1, WIDTH), value)
    net = blocks(3)
    learner = pa.Learner(loss, ADAM, rule=rule)
    taught = await teach(net, [1, 1, 1], frames, targets, learner)
    history = simulate(net, [1, 1, 1], frames, targets, plain(learner))
    assert sum(stage.skipped for stage in taught.stages) == (3 if loss is _blows_up else 2)
    assert [stage.skipped for stage in taught.stages] == history.skipped
    assert_same_weights(taught.weights[11], history.weights[-1])
    assert all(tensor.isfinite().all() for tensor in taught.weights[11].values())
    assert len(taught.updates) == len(history.trace)


@pytest.mark.parametrize("loss", [_blows_up, _bends_back])
async def test_non_finite_loss_or_gradient_by_policy_stops_the_pipeline(loss: Loss) -> None:
    """Every caller gets the NonFiniteError, with the frame and what was not finite; the weights stay good."""
    frames, _ = lessons(6)
    bad = torch.ones(1, WIDTH)
    learner = pa.Learner(loss, SGD, non_finite="stop")
    pipeline = pa.Pipeline(blocks(2), frames[0], balance=[1, 1], learner=learner)

    async def scene() -> None:
        async with pipeline:
            for frame in frames:
                await pipeline.process(frame, bad)

    with pytest.raises(pa.NonFiniteError, match=r"frame 0 (is|has the norm) nan"):
        await scene()
    assert all(tensor.isfinite().all() for tensor in (await pipeline.state_dict()).values())


async def test_statistics_of_each_stage_tell_what_it_learned() -> None:
    """Versions, updates, gradient norms and what is kept can be watched while it runs; without a learner, nothing."""
    frames, targets = lessons(8, missing=0.0)
    updates: list[pa.Update] = []
    learner = pa.Learner(mse, SGD, on_update=updates.append)
    async with pa.Pipeline(blocks(2), frames[0], balance=[1, 1], learner=learner) as pipeline:
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        await pipeline.load_state_dict(await pipeline.state_dict())
        first, second = (stage.learning for stage in pipeline.statistics().stages)
        assert [stage.statistics() for stage in stage_learners(pipeline)] == [first, second]
    assert first is not None
    assert second is not None
    assert (first.updates, first.version, second.updates, second.version) == (7, 8, 8, 9)
    assert first.gradient_norm == [update.gradient_norm for update in updates if update.stage == 0][-1]
    assert (first.kept, first.skipped, first.is_frozen) == (0, 0, False)
    async with pa.Pipeline(blocks(2), frames[0], stages=1) as plain_one:
        statistics = plain_one.statistics()
        assert statistics.learning is None
        assert statistics.stages[0].learning is None
