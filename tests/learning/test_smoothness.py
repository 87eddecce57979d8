"""How much a stage's input changes while its gradient is on its way, and who is told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import partime_async as pa
from partime_async.learning.smoothness import SmoothnessMeter
from tests.learning.school import SGD, WIDTH, blocks, mse

EXAMPLE = torch.zeros(1, WIDTH)


def fed(meter: SmoothnessMeter, frames: Iterator[Tensor], count: int, *, start: int = 0) -> SmoothnessMeter:
    """Show a meter this many frames."""
    for event in range(start, start + count):
        meter.look(event, (next(frames),))
    return meter


def noise(seed: int = 0) -> Iterator[Tensor]:
    """Yield frames that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(1, 400, generator=generator)


def turning(angle: float) -> Iterator[Tensor]:
    """Yield frames that turn, by this many radians from one to the next."""
    event = 0
    while True:
        phase = torch.arange(400) * (2 * torch.pi / 400) + angle * event
        yield phase.sin()[None]
        event += 1


def test_change_of_a_still_picture_is_zero() -> None:
    """What does not move is as smooth as can be."""
    assert fed(SmoothnessMeter(3, stage=0), iter([torch.ones(1, 4)] * 200), 200).change == 0.0


def test_change_of_unrelated_frames_is_the_root_of_two() -> None:
    """Independent frames differ by as much as their two sizes together."""
    assert fed(SmoothnessMeter(2, stage=None), noise(), 400).change == pytest.approx(2**0.5, rel=0.05)


@pytest.mark.parametrize("delay", [1, 2, 6, 100])
def test_change_is_measured_over_the_delay_of_the_stage(delay: int) -> None:
    """A sine that turns by an angle per frame has moved by twice the sine of half of it per frame of delay."""
    meter = fed(SmoothnessMeter(delay, stage=None), turning(0.05), 500)
    expected = 2 * abs(torch.sin(torch.tensor(0.05 * delay / 2)).item())
    assert meter.change == pytest.approx(expected, rel=1e-3)


def test_change_without_a_delay_or_before_the_first_look_is_none() -> None:
    """Where no gradient is late there is nothing to measure."""
    assert fed(SmoothnessMeter(0, stage=0), noise(), 300).change is None
    assert fed(SmoothnessMeter(5, stage=0), noise(), 4).change is None


def test_change_leaves_whole_numbers_and_numbers_that_are_none_out() -> None:
    """Indices have no size, and a frame that is broken says nothing about the stream."""
    assert fed(SmoothnessMeter(1, stage=0), iter([torch.ones(1, 4, dtype=torch.long)] * 200), 200).change is None
    broken = SmoothnessMeter(1, stage=0)
    for event in range(130):
        broken.look(event, (torch.ones(1, 3) * (torch.nan if event == 65 else 1.0),))
    assert broken.change == 0.0


def test_meter_skips_a_look_whose_second_frame_never_came() -> None:
    """Frames that failed before the stage leave gaps: only frames the delay apart are compared."""
    meter = SmoothnessMeter(2, stage=None)
    for event in (0, 1, 3, 64, 65, 67):
        meter.look(event, (torch.full((1, 2), float(event)),))
    assert meter.change is None


def test_meter_of_another_run_compares_nothing_across_the_two() -> None:
    """Frame numbers start over, and so does the meter."""
    meter = SmoothnessMeter(2, stage=None)
    meter.look(0, (torch.ones(1, 2),))
    meter.begin()
    meter.look(2, (torch.zeros(1, 2),))
    assert meter.change is None


def test_advice_is_given_once_and_names_stage_change_and_remedy() -> None:
    """Eight looks above the limit are enough, and one warning is."""
    frames, meter = noise(), SmoothnessMeter(2, stage=3)
    fed(meter, frames, 64 * 7)
    with pytest.warns(pa.PartimeWarning, match=r"stage 3 changes by 1\d\d% over the 2 frame.*stash") as caught:
        fed(meter, frames, 64 * 30, start=64 * 7)
    assert len(caught) == 1


def test_no_advice_for_a_smooth_stream_or_a_rule_that_does_not_mind() -> None:
    """Who does not meet newer frames with older gradients need not care; nor on a stream that hardly changes."""
    fed(SmoothnessMeter(2, stage=0), turning(0.05), 64 * 20)
    fed(SmoothnessMeter(2, stage=None), noise(), 64 * 20)


async def test_pipeline_shows_the_change_and_advises_against_current() -> None:
    """On a stream of noise the rule current is told off, once, on whatever thread; stash is not."""
    source = [(torch.randn(1, WIDTH), EXAMPLE) for _ in range(64 * 8 + 8)]
    for rule, expected in ((pa.rules.partime(), 1), (pa.rules.pipedream(), 0)):
        learner = pa.Learner(mse, SGD, rule=rule)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
                async for _ in pipeline.stream(source):
                    pass
                first, last = (stage.learning for stage in pipeline.statistics().stages)
        assert first is not None
        assert last is not None
        assert first.input_change == pytest.approx(2**0.5, rel=0.2)
        assert last.input_change is None
        assert len([each for each in caught if issubclass(each.category, pa.PartimeWarning)]) == expected


async def test_advice_where_warnings_are_errors_fails_one_frame() -> None:
    """Who makes errors of warnings gets this one as the error of the frame at which it was given."""
    learner = pa.Learner(mse, SGD, rule=pa.rules.partime())
    async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        source = [(torch.randn(1, WIDTH), EXAMPLE) for _ in range(64 * 8 + 8)]
        errors = [result.error async for result in pipeline.stream(source) if result.error is not None]
    assert [type(error.__cause__) for error in errors] == [pa.PartimeWarning]
