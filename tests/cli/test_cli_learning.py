"""Learning from the command line: what the user types, a run that learns, and rules side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from partime_async.cli.app import app
from partime_async.cli.lessons import LearnOptions, parse_optimizer, parse_rule
from partime_async.errors import ConfigurationError
from partime_async.learning import Graph, UpdateRule, rules

SMALL = ["--size", "16x16", "--stages", "2"]


def test_optimizer_with_options_makes_that_optimiser() -> None:
    """What is typed behind the colon are torch's own options."""
    optimizer = parse_optimizer("sgd:lr=0.25,momentum=0.9")([torch.nn.Parameter(torch.zeros(1))])

    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("text", "told"), [("sgdd", "sgdd"), ("sgd:lr", "'lr'"), ("sgd:lr=a", "lr=a"), ("sgd:speed=1", "speed")]
)
def test_optimizer_that_is_none_is_refused_with_the_remedy(text: str, told: str) -> None:
    """The message names what was typed, and shows how it is written."""
    with pytest.raises(ConfigurationError, match=told):
        parse_optimizer(text)


def test_rule_is_a_name_or_a_graph_with_a_lag() -> None:
    """Every rule can be typed."""
    assert parse_rule("pipedream") == rules.pipedream()
    assert parse_rule("current:3") == UpdateRule(Graph.CURRENT, 3)
    with pytest.raises(ConfigurationError, match="fastest"):
        parse_rule("fastest")


@pytest.mark.parametrize(("lesson", "loss"), [("backwards", "mse"), ("itself", "msee")])
def test_lesson_or_loss_unknown_is_refused(lesson: str, loss: str) -> None:
    """What can be learned, and by which loss, is listed."""
    with pytest.raises(ConfigurationError, match="Use "):
        LearnOptions.parsed(lesson, loss, "sgd:lr=0.01", "exact", None)


def test_run_that_learns_keeps_its_weights_and_goes_on_from_them(tmp_path: Path) -> None:
    """The loss is told and falls; a run with the saved weights begins lower than one without them."""
    weights = tmp_path / "weights.safetensors"
    learn = ["run", "scene", *SMALL, "--learn", "itself", "--optimizer", "adam:lr=0.003", "--json"]

    first = CliRunner().invoke(app, [*learn, "--frames", "60", "--save", str(weights)])
    fresh = CliRunner().invoke(app, [*learn, "--frames", "20"])
    second = CliRunner().invoke(app, [*learn, "--frames", "20", "--weights", str(weights)])

    runs = (first, fresh, second)
    assert [run.exit_code for run in runs] == [0, 0, 0], [run.output for run in runs]
    before, without, after = (json.loads(run.stdout.splitlines()[-1])["learning"]["loss"] for run in runs)
    assert before["count"] == 60
    assert before["recent"] < before["mean"]
    assert after["mean"] < without["mean"]


def test_run_in_spare_time_learns_from_some_frames_and_says_how_many() -> None:
    """A source that is never waited for leaves little time: a tenth teaches at least, the rest is measured alone."""
    asked = ["run", "scene", *SMALL, "--learn", "itself", "--spare", "--frames", "40", "--json"]

    result = CliRunner().invoke(app, asked)

    assert result.exit_code == 0, result.output
    learning = json.loads(result.stdout.splitlines()[-1])["learning"]
    assert learning["labels"]["taken"] >= 4
    assert learning["labels"]["taken"] + learning["labels"]["withheld"] == 40
    assert learning["loss"]["count"] == 40


def test_run_with_weights_that_are_not_there_is_told() -> None:
    """A file that does not exist is an error in one line, not a traceback."""
    result = CliRunner().invoke(app, ["run", "scene", *SMALL, "--frames", "3", "--weights", "nowhere.safetensors"])

    assert result.exit_code != 0
    assert "nowhere.safetensors" in result.stderr


def test_evaluate_compares_rules_and_draws_them(tmp_path: Path) -> None:
    """Every rule has its row, with as many losses as frames, and the picture is there."""
    picture = tmp_path / "curves.png"
    asked = ["evaluate", "scene", *SMALL, "--frames", "8", "--rule", "exact", "--rule", "pipedream", "--rule", "skip"]

    result = CliRunner().invoke(app, [*asked, "--json", "--output", str(picture)])

    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["rule"] for row in rows] == ["exact", "pipedream", "skip"]
    assert all(len(row["losses"]) == 8 for row in rows)
    assert rows[0]["losses"][0] == rows[1]["losses"][0]  # predicted before anything was learned
    assert picture.read_bytes().startswith(b"\x89PNG")
