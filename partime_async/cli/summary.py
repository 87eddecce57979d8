"""How a run went, in the end."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from partime_async.accounting import FrameCounts
from partime_async.cli.progress import (
    Header,
    frames_values,
    lag_words,
    layers_of,
    loss_words,
    plan_values,
    statistics_values,
)
from partime_async.cli.style import BAD, GOOD, LABEL, WARN, causes, counted, duration, rate
from partime_async.metrics import Quantiles
from partime_async.partition.plan import Plan
from partime_async.statistics import PipelineStatistics


@dataclass(frozen=True, slots=True)
class Summary:
    """All that is told in the end.

    Attributes:
        header: What ran.
        statistics: The pipeline's, when the last result was read.
        frames: Where the frames ended, when nothing was left in the pipeline.
        output: The video that was written, or None.
        written: How many frames it has.
        saved: Where the weights are kept, or None.
        is_interrupted: Whether the user ended it.
        error: What ended it; empty if nothing did.
        failure: Why the first frame failed that did; empty if none did.
    """

    header: Header
    statistics: PipelineStatistics
    frames: FrameCounts
    output: str | None
    written: int
    saved: str | None
    is_interrupted: bool
    error: str
    failure: str


def summary_values(summary: Summary) -> dict[str, object]:
    """Return a summary as values that `json` writes."""
    return {
        "source": summary.header.source,
        "model": summary.header.model,
        "overflow": summary.header.overflow,
        **statistics_values(summary.statistics),
        "frames": frames_values(summary.frames),
        "plan": plan_values(summary.header.plan),
        "output": summary.output,
        "written": summary.written,
        "saved": summary.saved,
        "interrupted": summary.is_interrupted,
        "error": summary.error or None,
        "first_failure": summary.failure or None,
    }


def summary_view(summary: Summary) -> RenderableType:
    """Draw a summary."""
    statistics = summary.statistics
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style=LABEL, no_wrap=True)
    rows.add_column()
    rows.add_row("source", Text(summary.header.source))
    rows.add_row("network", Text(_network(summary.header)))
    if summary.header.plan.note:
        rows.add_row("", Text(summary.header.plan.note, style=LABEL))
    rows.add_row("frames", _account(summary.frames))
    rows.add_row("speed", Text(f"{rate(statistics.throughput)} over {duration(statistics.elapsed_s)}", style="bold"))
    rows.add_row("latency", quantile_words(statistics.latency_s))
    rows.add_row("age", quantile_words(statistics.age_s))
    rows.add_row("loop lag", lag_words(statistics))
    if statistics.learning is not None:
        rows.add_row("loss", Text(loss_words(statistics), style="bold"))
    if summary.output is not None:
        rows.add_row("output", _written(summary))
    if summary.saved is not None:
        rows.add_row("weights", Text(summary.saved))
    if summary.is_interrupted:
        rows.add_row("ended", Text("interrupted", style=WARN))
    if summary.failure and not summary.error:  # what ended it comes as the last line, on stderr
        rows.add_row("first failure", Text(summary.failure, style="red"))
    return Group(rows, Text(), _stages(summary))


def _network(header: Header) -> str:
    stages = header.plan.stages
    cut = f" of {' + '.join(map(str, header.plan.balance))} layers" if stages > 1 else ""
    return f"{header.model} in {counted(stages, 'stage')}{cut}{_predicted(header.plan)}"


def _predicted(plan: Plan) -> str:
    if not plan.predicted_period_s:
        return ""
    return f", {rate(plan.predicted_throughput)} predicted"


def _account(frames: FrameCounts) -> Text:
    text = Text(f"{frames.offered} offered = ")
    text.append(f"{frames.delivered} delivered", style=GOOD if frames.delivered else "")
    text.append(" + ")
    text.append(f"{frames.failed} failed", style=BAD if frames.failed else "")
    text.append(" + ")
    text.append(f"{frames.dropped_total} dropped", style=WARN if frames.dropped_total else "")
    if frames.dropped_total:
        text.append(f" ({causes(frames.dropped)})", style=WARN)
    unfinished = frames.waiting + frames.in_flight + frames.unread
    if unfinished:
        text.append(f" + {unfinished} unfinished", style=BAD)
    return text


def quantile_words(quantiles: Quantiles) -> str:
    """Write a distribution in a line."""
    if not quantiles.count:
        return "-"
    figures = (("p50", quantiles.p50), ("p90", quantiles.p90), ("p99", quantiles.p99), ("max", quantiles.max))
    return "   ".join(f"{name} {duration(value)}" for name, value in figures)


def _written(summary: Summary) -> Text:
    if not summary.written:
        return Text(f"{summary.output} was not written: there was no result", style=WARN)
    return Text(f"{summary.output}, {counted(summary.written, 'frame')}")


def _stages(summary: Summary) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    for name in ("stage", "device", "threads", "layers", "frames", "busy", "p50", "p99"):
        is_text = name in ("device", "layers")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis")
    for stage, threads in zip(summary.statistics.stages, summary.header.plan.threads, strict=True):
        table.add_row(
            str(stage.stage),
            stage.device,
            str(threads),
            layers_of(stage),
            str(stage.frames),
            f"{min(1.0, stage.busy_share):.0%}",
            duration(stage.service_s.p50) if stage.service_s.count else "-",
            duration(stage.service_s.p99) if stage.service_s.count else "-",
        )
    return table
