"""Learning from the command line: what the user types, a run that learns, and rules side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from partime_async.cli.app import app
from partime_async.cli.lessons import LearnOptions, parse_optimizer, parse_rule
from partime_async.errors import ConfigurationError
from partime_async.learning import Graph, UpdateRule, rules

_PAIRS = """
import torch

def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

def frames():
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        yield torch.randn(1, 3, generator=generator), torch.full((1, 3), float(number % 2))

def broken():
    yield from frames()
    raise OSError("unplugged")

def wrong():
    for frame, _ in frames():
        yield frame, torch.ones(1, 5, 7)
"""


@pytest.fixture
def own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a module `pairs` with a network and sources of frames and targets."""
    (tmp_path / "pairs.py").write_text(_PAIRS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("pairs", None)


SMALL = ["--size", "16x16", "--stages", "2"]


def test_optimizer_with_options_makes_that_optimiser() -> None:
    """What is typed behind the colon are torch's own options."""
    optimizer = parse_optimizer("sgd:lr=0.25,momentum=0.9")([torch.nn.Parameter(torch.zeros(1))])

    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_optimizer_takes_words_and_several_numbers() -> None:
    """What torch wants as true or false, or as a pair, can be typed; capital letters do not matter."""
    sgd = parse_optimizer("SGD:lr=0.25,momentum=0.9,nesterov=true")([torch.nn.Parameter(torch.zeros(1))])
    adam = parse_optimizer("adam:betas=0.8/0.95,amsgrad=True")([torch.nn.Parameter(torch.zeros(1))])

    assert sgd.param_groups[0]["nesterov"] is True
    assert adam.param_groups[0]["betas"] == (0.8, 0.95)
    assert adam.param_groups[0]["amsgrad"] is True


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


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--spare"], "--spare says how to learn"),
        (["--rule", "pipedream"], "--rule says how to learn"),
        (["--learn", "itself", "--clip", "0"], "--clip is 0"),
        (["--save", "nowhere/weights.safetensors"], "no folder nowhere"),
        (["--save", "weights.pt"], "weights.safetensors"),
    ],
)
def test_run_with_an_option_that_would_do_nothing_is_refused_at_once(typed: list[str], told: str) -> None:
    """What would have been in vain, or lost in the end, is told before anything runs."""
    result = CliRunner().invoke(app, ["run", "scene", *SMALL, *typed])

    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


def test_run_on_a_source_of_pairs_learns_from_the_targets_that_were_asked_for(own_source: None) -> None:
    """What the source says is the target only if that is asked for, and its last frame gets none of its own instead."""
    asked = ["run", "pairs:frames", "--model", "pairs:network", "--stages", "2", "--json"]

    given = CliRunner().invoke(app, [*asked, "--learn", "given"])
    ahead = CliRunner().invoke(app, [*asked, "--learn", "next-frame"])

    assert [run.exit_code for run in (given, ahead)] == [0, 0], given.output + ahead.output
    by_target, by_next = (json.loads(run.stdout.splitlines()[-1])["learning"] for run in (given, ahead))
    assert by_target["labels"]["taken"] == 12
    assert (by_next["labels"]["taken"], by_next["labels"]["missing"]) == (11, 1)


def test_run_that_diverges_says_so(own_source: None) -> None:
    """The frames whose loss was not finite are counted, for people and for machines."""
    asked = ["run", "pairs:frames", "--model", "pairs:network", "--stages", "2", "--learn", "given"]
    wild = ["--optimizer", "sgd:lr=1e38"]

    told = CliRunner().invoke(app, [*asked, *wild])
    values = CliRunner().invoke(app, [*asked, *wild, "--json"])

    assert (told.exit_code, values.exit_code) == (0, 0), told.output + values.output
    assert "not finite" in told.stdout
    assert sum(stage["learning"]["skipped"] for stage in json.loads(values.stdout.splitlines()[-1])["stages"]) > 5


def test_run_whose_source_breaks_keeps_what_was_learned(own_source: None, tmp_path: Path) -> None:
    """An hour of learning is not lost because a camera was unplugged."""
    weights = tmp_path / "weights.safetensors"
    asked = ["run", "pairs:broken", "--model", "pairs:network", "--learn", "given", "--save", str(weights)]

    result = CliRunner().invoke(app, asked)

    assert result.exit_code == 1
    assert "unplugged" in result.stderr
    assert "weights" in result.stdout
    assert weights.is_file()


def test_run_with_weights_that_are_not_there_is_told() -> None:
    """A file that does not exist is an error in one line, not a traceback."""
    result = CliRunner().invoke(app, ["run", "scene", *SMALL, "--frames", "3", "--weights", "nowhere.safetensors"])

    assert result.exit_code == 2
    assert "--weights is 'nowhere.safetensors'" in result.stderr


def test_run_that_could_not_save_says_so_before_it_learns() -> None:
    """Else all that was learned would be lost in the end."""
    result = CliRunner().invoke(app, ["run", "scene", *SMALL, "--frames", "3", "--save", "nowhere/x.safetensors"])

    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no folder nowhere. Create it first" in " ".join(result.stderr.split())


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


def test_evaluate_learns_from_a_source_of_pairs_on_one_cut_for_all_rules(own_source: None) -> None:
    """A source that takes no options needs none, and what is learned late does not depend on how the plan came out."""
    asked = ["evaluate", "pairs:frames", "--model", "pairs:network", "--stages", "2", "--learn", "given"]

    result = CliRunner().invoke(app, [*asked, "--rule", "pipedream", "--rule", "pipedream", "--rule", "skip", "--json"])

    assert result.exit_code == 0, result.output
    one, other, skip = (json.loads(line)["losses"] for line in result.stdout.splitlines())
    assert one == other
    assert len(skip) == 12


def test_evaluate_skip_learns_from_every_nth_frame_with_the_learner_s_options(own_source: None) -> None:
    """One device, N times too slow: an ordinary loop over every N-th frame, its gradients clipped like the others'."""
    asked = ["evaluate", "pairs:frames", "--model", "pairs:network", "--stages", "2", "--learn", "given"]

    result = CliRunner().invoke(app, [*asked, "--rule", "skip", "--clip", "0.1", "--optimizer", "sgd:lr=0.5", "--json"])

    assert result.exit_code == 0, result.output
    pairs = import_module("pairs")
    torch.manual_seed(0)
    network = pairs.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    expected = []
    for number, (frame, target) in enumerate(pairs.frames()):
        loss = torch.nn.functional.mse_loss(network(frame), target)
        expected.append(float(loss.detach()))
        if number % 2 == 0:
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
    assert json.loads(result.stdout)["losses"] == expected


def test_evaluate_of_a_rule_that_diverges_says_so(own_source: None, tmp_path: Path) -> None:
    """A mean that leaves the worst losses out would flatter the rule: there is none, and the picture has a gap."""
    picture = tmp_path / "curves.png"
    asked = ["evaluate", "pairs:frames", "--model", "pairs:network", "--stages", "2", "--learn", "given"]
    wild = ["--optimizer", "sgd:lr=1e38", "--rule", "exact", "--rule", "skip"]

    told = CliRunner().invoke(app, [*asked, *wild, "--output", str(picture)])
    values = CliRunner().invoke(app, [*asked, *wild, "--json"])

    assert (told.exit_code, values.exit_code) == (0, 0), told.output + values.output
    assert told.stdout.count("not finite") == 4
    assert [json.loads(line)["mean"] for line in values.stdout.splitlines()] == [None, None]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--output", "curves.xyz"], "which is no picture"),
        (["--output", "nowhere/curves.png"], "no such folder"),
        (["--learn", "next-frame", "--frames", "2", "--loss", "cross-entropi"], "--loss is"),
    ],
)
def test_evaluate_that_would_be_in_vain_is_refused_before_it_learns(typed: list[str], told: str) -> None:
    """Minutes of learning for a picture that cannot be written help nobody."""
    result = CliRunner().invoke(app, ["evaluate", "scene", *SMALL, *typed])

    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert "learning by" not in result.stderr


def test_evaluate_whose_loss_fails_says_why(own_source: None) -> None:
    """A loss that raises is no frame without a target."""
    asked = ["evaluate", "pairs:wrong", "--model", "pairs:network", "--stages", "2", "--learn", "given"]

    result = CliRunner().invoke(app, [*asked, "--rule", "exact", "--loss", "cross-entropy"])

    assert result.exit_code == 2
    assert "failed on frame 0" in result.stderr
