"""The commands within one process: what they print, their errors and their exit codes."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from partime_async import MissingDependencyError
from partime_async.cli import doctor, main
from partime_async.cli.app import app
from partime_async.cli.doctor import Finding, Verdict

RUNNER = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"})


def told(*arguments: str, exit_code: int = 0) -> list[dict[str, object]]:
    """Run a command with ``--json`` and return the objects it wrote."""
    result = RUNNER.invoke(app, [*arguments, "--json"])
    assert result.exit_code == exit_code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_adds_up(frames: object) -> None:
    """Check that every frame offered ended in one place."""
    assert isinstance(frames, dict)
    assert frames["waiting"] == frames["in_flight"] == frames["unread"] == 0
    assert frames["offered"] == frames["delivered"] + frames["failed"] + sum(frames["dropped"].values())


def test_run_of_a_scene_tells_machines_all_they_need() -> None:
    """The objects are start, maybe progress, and a summary whose counts add up."""
    objects = told("run", "scene", "-n", "6", "--stages", "2", "--size", "16x16", "--seed", "1")
    assert objects[0]["type"] == "start"
    assert objects[0]["total"] == 6
    summary = objects[-1]
    assert summary["type"] == "summary"
    assert_adds_up(summary["frames"])
    assert summary["frames"] == {
        "offered": 6, "waiting": 0, "in_flight": 0, "unread": 0, "delivered": 6, "failed": 0, "dropped": {}
    }  # fmt: skip
    assert isinstance(summary["stages"], list)
    assert [stage["frames"] for stage in summary["stages"]] == [6, 6]
    assert (summary["error"], summary["interrupted"], summary["output"]) == (None, False, None)


def test_run_prints_a_summary_for_people() -> None:
    """Without a terminal there are plain lines, and then the summary."""
    result = RUNNER.invoke(app, ["run", "-n", "3", "--balance", "30,32", "--device", "cpu", "--size", "8x8"])
    assert result.exit_code == 0, result.output
    assert "conv-a  2 stages on cpu  moving scene 0" in result.stdout
    assert "conv-a in 2 stages of 30 + 32 layers" in result.stdout
    assert "3 offered = 3 delivered + 0 failed + 0 dropped" in result.stdout


@pytest.mark.usefixtures("importable")
def test_run_of_the_users_own_source_and_network_streams_them() -> None:
    """`module:name` names a source and a network."""
    objects = told("run", "users_own:ten", "--model", "users_own:small", "--stages", "1", "--loop", "asyncio")
    assert isinstance(objects[-1]["frames"], dict)
    assert objects[-1]["frames"]["delivered"] == 10
    assert objects[-1]["source"] == "users_own:ten: list"


@pytest.mark.usefixtures("importable")
def test_run_with_frames_that_fail_goes_on_and_tells_the_first() -> None:
    """By default a failed frame costs that frame only."""
    objects = told("run", "users_own:ten", "--model", "users_own:picky", "--stages", "1")
    assert_adds_up(objects[-1]["frames"])
    assert isinstance(objects[-1]["frames"], dict)
    assert (objects[-1]["frames"]["delivered"], objects[-1]["frames"]["failed"]) == (6, 4)
    assert str(objects[-1]["first_failure"]).endswith("failed on frame 6: ValueError: too bright")


@pytest.mark.usefixtures("importable")
def test_run_that_stops_on_an_error_exits_with_1_and_adds_up() -> None:
    """`--on-error stop` ends at the first failed frame, and what was in flight is counted."""
    objects = told(
        "run", "users_own:ten", "--model", "users_own:picky", "--stages", "1", "--on-error", "stop", exit_code=1
    )
    assert_adds_up(objects[-1]["frames"])
    assert str(objects[-1]["error"]).endswith("failed on frame 6: ValueError: too bright")


@pytest.mark.usefixtures("importable")
def test_run_of_a_source_that_breaks_delivers_what_came_before() -> None:
    """The error of the source is told on stderr, after the results."""
    result = RUNNER.invoke(app, ["run", "users_own:broken", "-m", "users_own:small", "-s", "1", "--json"])
    assert result.exit_code == 1
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["frames"]["delivered"] == 3
    assert summary["error"] == "OSError: the cable was pulled"
    assert result.stderr == "error: OSError: the cable was pulled (--traceback shows where)\n"


@pytest.mark.usefixtures("importable")
def test_run_with_traceback_shows_where_an_error_comes_from() -> None:
    """The user's own line is named."""
    result = RUNNER.invoke(app, ["run", "users_own:broken", "-m", "users_own:small", "-s", "1", "--traceback"])
    assert result.exit_code == 1
    assert 'raise OSError("the cable was pulled")' in result.stderr
    assert result.stderr.endswith("error: OSError: the cable was pulled\n")


@pytest.mark.usefixtures("importable")
def test_run_in_real_time_drops_the_old_unless_told_otherwise() -> None:
    """What is live keeps the latest frame; what is not loses none."""
    assert told("run", "scene", "-n", "2", "--size", "8x8", "-s", "1", "--realtime")[0]["overflow"] == "latest"
    kept = told("run", "scene", "-n", "2", "--size", "8x8", "-s", "1", "--realtime", "--overflow", "block")
    assert kept[0]["overflow"] == "block"


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.mp4",), "error: cannot read video nowhere.mp4: No such file or directory. Check the path.\n"),
        (("scene", "--model", "vgg"), "there is no model 'vgg'"),
        (("scene", "--model", "mlp"), "mlp takes frames such as"),
        (("scene", "--stages", "two"), "--stages is 'two'"),
        (("scene", "--stages", "99"), "99 stages cannot share 62 layer(s)"),
        (("scene", "--balance", "1,2"), "adds up to 3 layers"),
        (("scene", "--device", "tpu"), "unknown device 'tpu'"),
        (("scene", "--size", "wide"), "--size is 'wide'"),
        (("scene", "--max-age", "0"), "max_age_s is 0.0"),
        (("scene", "--output", "/nowhere/out.mp4"), "cannot write /nowhere/out.mp4"),
        (("users_own:nothing", "--model", "users_own:small"), "gave no frame at all"),
        (("scene", "--model", "users_own:small"), "raised on the example"),
    ],
)
def test_run_that_cannot_start_says_why_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    """A red line on stderr, nothing on stdout for a machine, and exit code 2."""
    result = RUNNER.invoke(app, ["run", *arguments, "--json"])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "option", [("--overflow", "spill"), ("--loop", "trio"), ("--frames", "0"), ("--colour", "red")]
)
def test_run_with_an_option_that_does_not_exist_shows_its_usage(option: tuple[str, str]) -> None:
    """The parser's own errors have the same exit code."""
    result = RUNNER.invoke(app, ["run", "scene", *option])
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_plan_for_machines_holds_the_plan() -> None:
    """Layers, costs and predictions are there; what was not measured is null."""
    (plan,) = told("plan", "--model", "mlp", "--stages", "2")
    assert plan["type"] == "plan"
    assert plan["shape"] == [1, 256]
    assert isinstance(plan["balance"], list)
    assert sum(plan["balance"]) == 31
    assert plan["measured_throughput"] is None


def test_plan_measured_shows_both_figures() -> None:
    """With `--measure` the prediction stands beside what came out."""
    result = RUNNER.invoke(app, ["plan", "-m", "mlp", "--balance", "15,16", "--measure"])
    assert result.exit_code == 0, result.output
    assert "predicted" in result.stdout
    assert "measured" in result.stdout
    assert "linear1 .. linear8" in result.stdout


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "users_own:small"), "Give --size 64x64 or --shape 1,3,64,64"),
        (("--model", "users_own:small", "--shape", "1,5"), "raised on the example"),
        (("--model", "mlp", "--size", "8x8"), "have no width and height"),
        (("--size", "8x8", "--shape", "1,3,8,8"), "twice"),
        (("--size", "auto"), "there is no source"),
        (("--stages", "99"), "99 stages cannot share"),
    ],
)
def test_plan_that_cannot_be_says_why(arguments: tuple[str, ...], words: str) -> None:
    """Errors are one line, and exit code 2."""
    result = RUNNER.invoke(app, ["plan", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.usefixtures("importable")
def test_plan_of_the_users_own_network_takes_a_shape() -> None:
    """Frames that are no pictures are described by `--shape`."""
    (plan,) = told("plan", "--model", "users_own:small", "--shape", "1,4", "--stages", "1")
    assert plan["layer_names"] == ["0", "1", "2"]


def test_models_lists_every_network_with_a_line() -> None:
    """The names are those that `--model` takes."""
    result = RUNNER.invoke(app, ["models"])
    assert result.exit_code == 0
    for name in ("conv-a", "conv-b", "mlp", "resnet152", "module:factory"):
        assert f"\n{name} " in f"\n{result.stdout}"
    (listed,) = told("models")
    assert isinstance(listed["models"], list)
    assert {"name": "mlp", "frame": [1, 256]}.items() <= listed["models"][2].items()


def test_doctor_runs_a_pipeline_and_finds_it_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything needed is there, it says so and exits with 0."""
    monkeypatch.setattr(doctor, "_TEST_S", 0.2)
    (diagnosis,) = told("doctor")
    assert diagnosis["ok"] is True
    assert isinstance(diagnosis["findings"], list)
    findings = {finding["name"]: finding for finding in diagnosis["findings"]}
    assert "same numbers" in findings["self-test"]["detail"]
    assert findings["torch"]["verdict"] == "ok"


def test_doctor_with_something_missing_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing comes with what to do about it."""
    finding = Finding("self-test", Verdict.BAD, "other numbers", "report this")
    monkeypatch.setattr(doctor, "_self_test", lambda: finding)
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "report this" in result.stdout
    assert "Something needed is missing." in result.stdout


def test_doctor_on_a_pipeline_that_gives_other_numbers_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test compares; it does not only run."""
    honest = doctor._alone
    monkeypatch.setattr(doctor, "_TEST_S", 0.2)
    monkeypatch.setattr(doctor, "_alone", lambda *arguments: ([out + 1 for out in honest(*arguments)[0]], 1.0))
    (diagnosis,) = told("doctor", exit_code=1)
    assert diagnosis["ok"] is False


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_main_without_its_packages_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line is an extra; without it, one line says how to get it."""
    monkeypatch.setattr("partime_async.cli.find_spec", lambda name: None if name == package else object())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {MissingDependencyError(package, 'cli')}\n"


def test_main_hands_on_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The console script ends as the command did."""
    monkeypatch.setattr("sys.argv", ["partime-async", "models"])
    monkeypatch.setattr("sys.path", ["", *sys.path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "conv-a" in capsys.readouterr().out


def test_run_writes_nothing_to_the_log(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Asyncio has nothing to complain about, and the video is where it should be."""
    output = tmp_path / "out.mp4"
    with caplog.at_level(logging.WARNING):
        objects = told("run", "scene", "-n", "4", "-s", "1", "--size", "16x16", "-o", str(output))
    assert not caplog.records
    assert (objects[-1]["output"], objects[-1]["written"]) == (str(output), 4)
    assert output.exists()


def test_version_is_told_without_a_command() -> None:
    """The program's own name and version, on one line, and nothing is run."""
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"partime-async \d+(\.\d+)+\S*\n", result.stdout)
