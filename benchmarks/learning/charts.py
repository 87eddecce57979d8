"""Charts of what learning is worth and costs, drawn from the raw record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.record import BenchmarkError, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HERE = Path(__file__).parent
ROOT = _HERE.parent.parent
_COLOURS = {
    "exact": "#222222",
    "pipedream": "#1f77b4",
    "stash, lag 2": "#17becf",
    "replay": "#2ca02c",
    "current, lag 1": "#ff9f1c",
    "partime": "#d62728",
    "skip": "#9467bd",
}
_REFERENCE = "exact"
_WIDTHS = {_REFERENCE: 1.9, "pipedream": 1.9}
_ROOM = 4.0
_DPI = 110


def quality(report: Report, places: Sequence[tuple[str, str]]) -> list[str]:
    """Draw the loss along the stream for every course and order; return Markdown that shows the charts.

    Args:
        report: Of `learning-quality`.
        places: Courses and orders.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    columns = min(2, len(places))
    rows = -(-len(places) // columns)
    figure = _figure(5.6 * columns, 3.1 * rows)
    for number, (course, order) in enumerate(places, 1):
        axes = figure.add_subplot(rows, columns, number)
        _losses(axes, report, course, order)
    figure.axes[0].legend(fontsize=7, ncols=2)
    return [_saved(figure, report, "quality.png", "Loss along the stream, by update rule")]


def _losses(axes: Axes, report: Report, course: str, order: str) -> None:
    rounds = report.of(course, order)
    for rule, colour in _COLOURS.items():
        series = [each.samples[rule].measurement.series["loss"] for each in rounds]
        points = list(map(median, zip(*series, strict=False)))
        if rule == _REFERENCE:
            # One that diverges leaves the picture, and the others can be told apart.
            axes.set_ylim(min(points) / _ROOM, max(points) * _ROOM)
        share = [100.0 * (number + 0.5) / len(points) for number in range(len(points))]
        axes.plot(share, points, label=rule, color=colour, linewidth=_WIDTHS.get(rule, 1.1))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title(f"{course}: {order}", fontsize=9)
    axes.set_xlabel("stream seen, %", fontsize=8)
    axes.set_ylabel("loss before learning", fontsize=8)
    axes.tick_params(labelsize=7)


def bars(
    report: Report,
    name: str,
    title: str,
    *,
    groups: Sequence[str],
    heights: dict[str, Sequence[float]],
    unit: str,
    lines: dict[str, Sequence[float]] | None = None,
) -> str:
    """Draw bars side by side; return Markdown that shows the chart.

    Args:
        report: What it is drawn from.
        name: Of the file.
        title: What it shows.
        groups: Along the axis.
        heights: By what is compared, for each group.
        unit: Of the heights.
        lines: Marks across the bars of the same name: what they are held against.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    figure = _figure(1.5 + 1.2 * len(groups), 3.4)
    axes = figure.add_subplot()
    width = 0.8 / len(heights)
    for number, (label, values) in enumerate(heights.items()):
        places = [index - 0.4 + width * (number + 0.5) for index in range(len(groups))]
        axes.bar(places, list(values), 0.9 * width, label=label, color=_COLOURS.get(label))
        if lines is not None and label in lines:
            axes.hlines(
                list(lines[label]),
                [place - width / 2 for place in places],
                [place + width / 2 for place in places],
                color="black",
                linewidth=1.2,
            )
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    return _saved(figure, report, name, title)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(
            "matplotlib, which draws the charts, is not installed. Install it with: python -m pip install matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Figure, report: Report, name: str, title: str) -> str:
    folder = ROOT / "out" / "benchmarks" if report.settings["is_quick"] else _HERE
    folder.mkdir(parents=True, exist_ok=True)
    # Nothing of the time and the program goes into the file: it changes when the figures do.
    figure.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
    return f"![{title}]({(folder / name).relative_to(ROOT).as_posix()})"
