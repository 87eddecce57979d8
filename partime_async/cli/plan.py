"""`partime-async plan` and `partime-async models`: what there is, and how it would be cut here."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from partime_async.cli.options import CutOptions
from partime_async.cli.progress import plan_values
from partime_async.cli.style import ACCENT, LABEL, duration, rate, size_words
from partime_async.errors import ConfigurationError
from partime_async.models import build, describe, example_size
from partime_async.partition.plan import Plan
from partime_async.planning import plan


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What `partime-async plan` was told."""

    model: str
    cut: CutOptions
    size: tuple[int, int] | None
    shape: tuple[int, ...] | None
    is_measured: bool


def show_plan(options: PlanOptions, *, is_json: bool) -> None:
    """Plan, which takes seconds, and print the plan.

    Raises:
        PartimeError: It cannot be planned as asked.
    """
    shape = frame_shape(options)
    torch.manual_seed(0)
    console = Console(highlight=False)
    module = build(options.model).eval()
    with console.status("measuring the layers ...") if not is_json else console.capture():
        chosen = plan(
            module,
            torch.rand(shape),
            devices=options.cut.devices,
            stages=options.cut.stages,
            balance=options.cut.balance,
            measure=options.is_measured,
        )
    if is_json:
        sys.stdout.write(json.dumps({"type": "plan", "model": options.model, "shape": shape, **plan_values(chosen)}))
        sys.stdout.write("\n")
    else:
        console.print(plan_view(options.model, shape, chosen))


def plan_view(model: str, shape: tuple[int, ...], chosen: Plan) -> RenderableType:
    """Draw a plan as a table."""
    title = Text.assemble((model, f"bold {ACCENT}"), f"  frames {'x'.join(map(str, shape))}")
    title.append(f"  {len(chosen.layer_names)} layers", style=LABEL)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    for name in ("stage", "device", "threads", "layers", "count", "parameters", "time", "share"):
        is_text = name in ("device", "layers")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "layers", overflow="ellipsis")
    start = 0
    total = sum(chosen.stage_costs_s) or 1.0
    for stage, count in enumerate(chosen.balance):
        first, last = chosen.layer_names[start], chosen.layer_names[start + count - 1]
        cost = chosen.stage_costs_s[stage]
        table.add_row(
            str(stage),
            chosen.devices[stage],
            str(chosen.threads[stage]),
            first if count == 1 else f"{first} .. {last}",
            str(count),
            size_words(chosen.parameter_bytes[stage]),
            duration(cost),
            f"{cost / total:.0%}",
        )
        start += count
    return Group(title, Text(), table, Text(), _figures(chosen))


def _figures(chosen: Plan) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style=LABEL)
    rows.add_column()
    rows.add_row("predicted", _figure(chosen.predicted_throughput, chosen.predicted_latency_s))
    if chosen.measured_throughput is not None:
        rows.add_row("measured", _figure(chosen.measured_throughput, chosen.measured_latency_s))
    if chosen.note:
        rows.add_row("note", Text(chosen.note))
    return rows


def _figure(throughput: float, latency_s: float | None) -> Text:
    text = Text(rate(throughput), style="bold")
    if latency_s is not None:
        text.append(f"   latency {duration(latency_s)}", style="not bold")
    return text


def frame_shape(options: PlanOptions) -> tuple[int, ...]:
    """Return the shape of the frames, with the batch dimension.

    Raises:
        ConfigurationError: It is not known, or was given twice.
    """
    if options.shape is not None:
        if options.size is not None:
            raise ConfigurationError("--size and --shape say the same thing twice. Give one of the two.")
        return options.shape
    is_known = options.model in dict(describe())
    if options.size is not None:
        channels = 3
        if is_known:
            suits = example_size(options.model)
            if len(suits) != 4:
                raise ConfigurationError(
                    f"{options.model} takes frames such as {suits}, which have no width and height. Use --shape."
                )
            channels = suits[1]
        return 1, channels, options.size[1], options.size[0]
    if is_known:
        return example_size(options.model)
    raise ConfigurationError(
        f"nothing is known of the frames that {options.model!r} takes. Give --size 64x64 or --shape 1,3,64,64."
    )


def show_models(*, is_json: bool) -> None:
    """Print the models of this package."""
    if is_json:
        models = [{"name": name, "summary": summary, "frame": example_size(name)} for name, summary in describe()]
        sys.stdout.write(json.dumps({"type": "models", "models": models}) + "\n")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style=f"bold {ACCENT}", no_wrap=True)
    table.add_column()
    for name, summary in describe():
        table.add_row(name, Text(summary))
    table.add_row("module:factory", Text("your own: something importable that returns a torch.nn.Module", style=LABEL))
    Console(highlight=False).print(table)
