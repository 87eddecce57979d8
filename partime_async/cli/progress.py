"""What a run looks like while it runs: a live view, a line, or values for JSON."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from partime_async.accounting import FrameCounts
from partime_async.cli.style import ACCENT, BAD, LABEL, WARN, causes, counted, duration, rate
from partime_async.metrics import Quantiles
from partime_async.partition.plan import Plan
from partime_async.stage import StageStatistics
from partime_async.statistics import PipelineStatistics, TeachingStatistics

_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class Header:
    """What runs.

    Attributes:
        source: One line about the source.
        model: The model's name.
        plan: How it is cut.
        total: How many frames there will be; None: nobody knows.
        overflow: The feed's policy.
    """

    source: str
    model: str
    plan: Plan
    total: int | None
    overflow: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run.

    Attributes:
        statistics: The pipeline's, since the start.
        throughput: Frames/s of the last two seconds.
        busy_shares: For each stage, its busy share of the last two seconds.
    """

    statistics: PipelineStatistics
    throughput: float
    busy_shares: tuple[float, ...]


class Recent:
    """Turns totals since the start into rates of the last two seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, tuple[float, ...]]] = deque()

    def progress(self, statistics: PipelineStatistics) -> Progress:
        """Return this moment, with rates since an earlier one."""
        now = statistics.elapsed_s
        busy = tuple(stage.busy_s for stage in statistics.stages)
        self._seen.append((now, statistics.frames.delivered, busy))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        began, delivered, busy_then = self._seen[0] if len(self._seen) > 1 else (0.0, 0, (0.0,) * len(busy))
        span = max(now - began, 1e-9)
        return Progress(
            statistics,
            (statistics.frames.delivered - delivered) / span,
            tuple(min(1.0, (after - before) / span) for after, before in zip(busy, busy_then, strict=True)),
        )


def live_view(header: Header, progress: Progress) -> RenderableType:
    """Draw one moment for a terminal of any width."""
    statistics = progress.statistics
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style=LABEL)
    figures.add_column()
    figures.add_row("speed", Text(rate(progress.throughput), style="bold"))
    figures.add_row("age", _ages(statistics.age_s))
    figures.add_row("in flight", _in_flight(statistics))
    figures.add_row("dropped", _dropped(statistics.frames))
    figures.add_row("loop lag", _lag(statistics))
    if statistics.learning is not None:
        figures.add_row("loss", Text(loss_words(statistics), style="bold"))
    return Group(title(header), _frames_bar(header, statistics), figures, _stage_bars(progress), Text())


def title(header: Header) -> Text:
    """Say in one line what runs where."""
    stages = counted(header.plan.stages, "stage")
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(header.model, style=f"bold {ACCENT}")
    text.append(f"  {stages} on {', '.join(dict.fromkeys(header.plan.devices))}")
    text.append(f"  {header.source}", style=LABEL)
    return text


def _frames_bar(header: Header, statistics: PipelineStatistics) -> RenderableType:
    frames = statistics.frames
    done = frames.delivered + frames.failed + frames.dropped_total
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    if header.total is None:
        row.add_row(f"{done} frames", "", _clock(statistics.elapsed_s))
    else:
        bar = ProgressBar(total=header.total, completed=done, complete_style=ACCENT, finished_style="green")
        row.add_row(f"{done} of {header.total} frames", bar, _clock(statistics.elapsed_s))
    return row


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _ages(age_s: Quantiles) -> Text:
    if not age_s.count:
        return Text("-")
    return Text(f"p50 {duration(age_s.p50)}   p99 {duration(age_s.p99)}   max {duration(age_s.max)}")


def _in_flight(statistics: PipelineStatistics) -> Text:
    of_window = "" if statistics.window is None else f" of at most {statistics.window}"
    return Text(f"{statistics.frames.in_flight}{of_window}   waiting {statistics.frames.waiting}")


def _dropped(frames: FrameCounts) -> Text:
    text = Text(str(frames.dropped_total))
    if frames.dropped_total:
        text.append(f"   {causes(frames.dropped)}", style=WARN)
    if frames.failed:
        text.append(f"   failed {frames.failed}", style=BAD)
    return text


def _lag(statistics: PipelineStatistics) -> Text:
    return Text(lag_words(statistics))


def lag_words(statistics: PipelineStatistics) -> str:
    """Say how late the event loop runs."""
    lag = statistics.loop.lag_s
    if not lag.count:
        return "-"
    fault = "" if statistics.loop.worst_stage is None else f", while stage {statistics.loop.worst_stage} was busy"
    return f"p50 {duration(lag.p50)}   p99 {duration(lag.p99)}   max {duration(lag.max)}{fault}"


def loss_words(statistics: PipelineStatistics) -> str:
    """Say how the loss goes, and how many frames taught nothing; nothing, if nobody learns."""
    learning = statistics.learning
    if learning is None:
        return ""
    loss, labels = learning.loss, learning.labels
    words = "-"
    if loss.count:
        words = f"recent {loss.recent:.4g}   mean {loss.mean:.4g}   of {counted(loss.count, 'frame')}"
    bad = sum(stage.learning.skipped for stage in statistics.stages if stage.learning is not None)
    for what, count in (
        ("no target", 0 if labels is None else labels.missing),
        ("no time", 0 if labels is None else labels.withheld),
        ("not finite", bad),
    ):
        words += f"   {what} {count}" if count else ""
    return words


def layers_of(stage: StageStatistics) -> str:
    """Name the first and the last layer of a stage."""
    first, last = stage.layers
    return first if first == last else f"{first} .. {last}"


def _stage_bars(progress: Progress) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, style=LABEL)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    for stage, share in zip(progress.statistics.stages, progress.busy_shares, strict=True):
        table.add_row(
            f"stage {stage.stage}",
            stage.device,
            layers_of(stage),
            ProgressBar(total=1.0, completed=share, complete_style="magenta", finished_style="magenta"),
            f"{share:.0%} busy",
            duration(stage.service_s.p50) if stage.service_s.count else "-",
        )
    return table


def line(header: Header, progress: Progress) -> str:
    """Write one moment as a line of a log."""
    statistics, frames = progress.statistics, progress.statistics.frames
    of_total = "" if header.total is None else f"/{header.total}"
    window = "" if statistics.window is None else f"/{statistics.window}"
    dropped = f"{frames.dropped_total} ({causes(frames.dropped)})" if frames.dropped_total else "0"
    parts = [
        f"{statistics.elapsed_s:7.1f} s",
        f"frames {frames.delivered}{of_total}",
        rate(progress.throughput),
        f"age p50 {duration(statistics.age_s.p50)} p99 {duration(statistics.age_s.p99)}",
        f"in flight {frames.in_flight}{window}",
        f"dropped {dropped}",
        *([f"failed {frames.failed}"] if frames.failed else []),
        "busy " + " ".join(f"{share:.0%}" for share in progress.busy_shares),
        f"loop lag p99 {duration(statistics.loop.lag_s.p99)}",
        *(
            [f"loss {statistics.learning.loss.recent:.4g}"]
            if statistics.learning and statistics.learning.loss.count
            else []
        ),
    ]
    return "  ".join(parts)


def statistics_values(statistics: PipelineStatistics) -> dict[str, object]:
    """Return statistics as values that `json` writes."""
    return {
        "elapsed_s": statistics.elapsed_s,
        "frames": frames_values(statistics.frames),
        "throughput": statistics.throughput,
        "latency_s": asdict(statistics.latency_s),
        "age_s": asdict(statistics.age_s),
        "window": statistics.window,
        "stages": [_stage_values(stage) for stage in statistics.stages],
        "learning": None if statistics.learning is None else _learning_values(statistics.learning),
        "loop": {"lag_s": asdict(statistics.loop.lag_s), "worst_stage": statistics.loop.worst_stage},
    }


def frames_values(frames: FrameCounts) -> dict[str, object]:
    """Return counts as values that `json` writes."""
    return {
        "offered": frames.offered,
        "waiting": frames.waiting,
        "in_flight": frames.in_flight,
        "unread": frames.unread,
        "delivered": frames.delivered,
        "failed": frames.failed,
        "dropped": dict(frames.dropped),
    }


def _stage_values(stage: StageStatistics) -> dict[str, object]:
    learning = None if stage.learning is None else _finite(asdict(stage.learning))
    return asdict(stage) | {"layers": list(stage.layers), "learning": learning}


def _learning_values(learning: TeachingStatistics) -> dict[str, object]:
    return {
        "loss": _finite(asdict(learning.loss)),
        "metrics": {name: _finite(asdict(measure)) for name, measure in learning.metrics.items()},
        "labels": None if learning.labels is None else asdict(learning.labels),
    }


def _finite(values: dict[str, object]) -> dict[str, object]:
    """Return values with null for numbers that are not finite, which JSON does not know."""
    return {
        name: None if isinstance(item, float) and not math.isfinite(item) else item for name, item in values.items()
    }


def plan_values(plan: Plan) -> dict[str, object]:
    """Return a plan as values that `json` writes: what is not known is null, not infinite."""
    return _finite(plan.to_dict())
