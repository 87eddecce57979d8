"""The figures of a run, and how they fit a terminal, a log and JSON."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console, RenderableType

from partime_async import ConfigurationError, Pipeline, PipelineStatistics, Plan
from partime_async.accounting import FrameCounts
from partime_async.cli.plan import plan_view
from partime_async.cli.progress import Header, Progress, Recent, line, live_view, plan_values, statistics_values
from partime_async.cli.report import JsonReporter, LineReporter, LiveReporter
from partime_async.cli.style import causes, duration, in_one_line, rate, size_words
from partime_async.cli.summary import Summary, summary_values, summary_view
from partime_async.models import mlp

FRAMES = FrameCounts(offered=50, waiting=1, in_flight=3, delivered=30, failed=2, dropped={"overflow": 9, "stale": 5})
SOURCE = "a_clip_with_a_name_that_is_rather_long[1].mp4: 640x272 h264, 25 frames/s, 250 frames"


@pytest.fixture(scope="module")
def told() -> tuple[PipelineStatistics, Plan]:
    """Return what a pipeline tells that has run ten frames through two stages."""

    async def main() -> tuple[PipelineStatistics, Plan]:
        frames = torch.rand(10, 8)
        async with Pipeline(mlp(layers=4, width=8), frames[:1], stages=2, devices=["cpu"]) as pipeline:
            async for _ in pipeline.stream(frames):
                pass
            return pipeline.statistics(), pipeline.plan

    return asyncio.run(main())


@pytest.fixture
def statistics(told: tuple[PipelineStatistics, Plan]) -> PipelineStatistics:
    """Return these statistics, with a window and frames everywhere."""
    stages = tuple(
        replace(stage, busy_s=busy, layers=("layer1_0_conv1", "layer3_0_downsample"))
        for stage, busy in zip(told[0].stages, (3.0, 1.0), strict=True)
    )
    return replace(told[0], elapsed_s=4.0, frames=FRAMES, window=3, stages=stages)


@pytest.fixture
def header(told: tuple[PipelineStatistics, Plan]) -> Header:
    """Return what runs."""
    return Header(SOURCE, "resnet50", told[1], total=250, overflow="latest")


@pytest.fixture
def summary(header: Header, statistics: PipelineStatistics) -> Summary:
    """Return how it went."""
    ended = replace(FRAMES, waiting=0, in_flight=0, dropped={"overflow": 9, "stale": 9})
    return Summary(
        header, statistics, ended, "out.mp4", 30, saved=None, is_interrupted=True, error="", failure="too bright"
    )


def drawn(view: RenderableType, width: int) -> list[str]:
    """Return the lines of a drawing on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return [text.rstrip() for text in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.00 ms"),
        (0.000412, "0.41 ms"),
        (0.0713, "71.3 ms"),
        (0.303, "303 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
    ],
)
def test_duration_of_any_length_has_three_digits(seconds: float, words: str) -> None:
    """Durations are told in the unit that suits them."""
    assert duration(seconds) == words


def test_numbers_for_people_have_their_units() -> None:
    """Rates, sizes and causes read as words."""
    assert (rate(28.44), rate(12345.6)) == ("28.4 frames/s", "12,346 frames/s")
    assert (size_words(12), size_words(1_700_000)) == ("12 B", "1.7 MB")
    assert causes({"stale": 2, "overflow": 9, "unread": 0}) == "overflow 9, stale 2"


def test_in_one_line_of_errors_names_only_foreign_ones() -> None:
    """The library's errors speak for themselves; others come with their type; none is nothing."""
    assert in_one_line(ConfigurationError("so\nand so.")) == "so and so."
    assert in_one_line(OSError("cable")) == "OSError: cable"
    assert in_one_line(None) == ""


def test_recent_rates_are_those_of_the_last_two_seconds(statistics: PipelineStatistics) -> None:
    """What was long ago counts no more."""
    recent = Recent()

    def at(elapsed_s: float, delivered: int, busy_s: float) -> Progress:
        stage = replace(statistics.stages[0], busy_s=busy_s)
        frames = replace(FRAMES, delivered=delivered)
        return recent.progress(replace(statistics, elapsed_s=elapsed_s, frames=frames, stages=(stage,)))

    first = at(1.0, 5, 0.25)
    assert (first.throughput, first.busy_shares) == (5.0, (0.25,))
    at(2.0, 100, 1.0)
    at(3.0, 110, 1.25)
    last = at(4.0, 140, 2.0)
    assert (last.throughput, last.busy_shares) == (20.0, (0.5,))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_live_view_fits_the_terminal(header: Header, statistics: PipelineStatistics, width: int) -> None:
    """Every figure is there, and no line is broken."""
    lines = drawn(live_view(header, Progress(statistics, 28.4, (0.75, 0.25))), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("46 of 250 frames", "28.4 frames/s", "3 of at most 3", "overflow 9, stale 5", "failed 2", "75% busy"):
        assert words in text
    assert [text.split()[:2] for text in lines[-3:-1]] == [["stage", "0"], ["stage", "1"]]


def test_line_of_a_moment_holds_every_figure(header: Header, statistics: PipelineStatistics) -> None:
    """A log gets one line."""
    text = line(header, Progress(statistics, 28.4, (0.75, 0.25)))
    assert "\n" not in text
    for words in (
        "frames 30/250",
        "28.4 frames/s",
        "in flight 3/3",
        "dropped 14 (overflow 9, stale 5)",
        "busy 75% 25%",
    ):
        assert words in text


@pytest.mark.parametrize("width", [80, 120])
def test_summary_view_adds_up(summary: Summary, width: int) -> None:
    """The account of frames is an equation, and a name in brackets is no markup."""
    lines = drawn(summary_view(summary), width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "50 offered = 30 delivered + 2 failed + 18 dropped (overflow 9, stale 9)" in text
    assert "long[1].mp4" in text
    assert "too bright" in text
    assert "interrupted" in text


def test_summary_view_of_frames_that_are_nowhere_tells_them(summary: Summary) -> None:
    """What a stuck stage still holds is not hidden."""
    lines = drawn(summary_view(replace(summary, frames=FRAMES)), 120)
    assert any("+ 4 unfinished" in text for text in lines)


def test_values_for_json_survive_it(summary: Summary) -> None:
    """All that is told to machines is plain, finite JSON."""
    values = summary_values(summary)
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_plan_values_of_an_unmeasured_plan_are_null(told: tuple[PipelineStatistics, Plan]) -> None:
    """Nobody measured is not infinitely fast."""
    plan = replace(told[1], predicted_period_s=0.0)
    assert plan_values(plan)["predicted_throughput"] is None


@pytest.mark.parametrize("width", [80, 120])
def test_plan_view_fits_the_terminal(told: tuple[PipelineStatistics, Plan], width: int) -> None:
    """A plan is a table of one line a stage."""
    lines = drawn(plan_view("mlp", (1, 8), replace(told[1], measured_throughput=50.0, measured_latency_s=0.02)), width)
    assert max(map(len, lines)) <= width
    assert [text.split()[:2] for text in lines[3:5]] == [["0", "cpu"], ["1", "cpu"]]
    assert any("measured" in text and "50.0 frames/s" in text and "20.0 ms" in text for text in lines)


def test_json_reporter_writes_an_object_a_line(
    header: Header, statistics: PipelineStatistics, summary: Summary
) -> None:
    """Start, progress and summary are objects; what is being done is for people."""
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    reporter.write("planning")
    reporter.write(header)
    reporter.write(Progress(statistics, 28.4, (0.75, 0.25)))
    reporter.close()
    reporter.finish(summary)
    told = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert [values["type"] for values in told] == ["start", "progress", "summary"]
    assert told[1]["recent"] == {"throughput": 28.4, "busy_shares": [0.75, 0.25]}
    assert told[1]["frames"] == statistics_values(statistics)["frames"]


def test_line_reporter_writes_a_title_lines_and_the_summary(
    header: Header, statistics: PipelineStatistics, summary: Summary
) -> None:
    """A pipe gets text without control characters."""
    stream = io.StringIO()
    reporter = LineReporter(stream, Console(file=stream, width=100))
    reporter.write("planning")
    reporter.write(header)
    reporter.write(Progress(statistics, 28.4, (0.75, 0.25)))
    reporter.close()
    reporter.finish(summary)
    text = stream.getvalue()
    assert text.startswith("resnet50  2 stages on cpu  a_clip")
    assert "\x1b" not in text


def test_live_reporter_leaves_only_the_summary(
    header: Header, statistics: PipelineStatistics, summary: Summary
) -> None:
    """The cursor is shown again, and the drawing is wiped."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, height=40, force_terminal=True, legacy_windows=False)
    reporter = LiveReporter(console)
    reporter.write("planning")
    reporter.write(header)
    reporter.write(Progress(statistics, 28.4, (0.75, 0.25)))
    reporter.close()
    before_summary = stream.getvalue()
    reporter.finish(summary)
    assert "28.4 frames/s" in before_summary
    assert before_summary.rindex("\x1b[?25h") > before_summary.rindex("\x1b[?25l")
    assert before_summary.endswith("\x1b[2K")
