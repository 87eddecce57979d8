"""The command in a process of its own: signals, pipes and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from tests.commands import Command
from tests.sources.clips import record

TIMEOUT_S = 60.0
SLEEP_S = 25.0
"""Less than what sleeps in the user's module; far more than the two seconds it takes where nothing else is running."""


def objects_of(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    """Wait for a process that was told ``--json`` and return what it wrote."""
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert not stderr, stderr
    return [json.loads(line) for line in stdout.splitlines()]


def interrupt(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> float:
    """Send a signal and return the seconds until the process has ended."""
    began = time.monotonic()
    process.send_signal(number)
    process.wait(TIMEOUT_S)
    return time.monotonic() - began


def assert_adds_up(frames: object) -> dict[str, object]:
    """Check that every frame offered ended in one place."""
    assert isinstance(frames, dict)
    assert frames["waiting"] == frames["in_flight"] == frames["unread"] == 0
    assert frames["offered"] == frames["delivered"] + frames["failed"] + sum(frames["dropped"].values())
    return frames


def test_run_of_a_clip_in_real_time_writes_a_video_of_all_that_was_delivered(
    command: Command, users_folder: Path
) -> None:
    """Every line is an object, the counts add up, and the video has as many frames as were delivered."""
    record(users_folder / "clip.mp4", frames=40, size=(64, 48))
    process = command(
        "run", "clip.mp4", "-m", "users_own:picture", "--stages", "2", "--realtime", "--output", "out.mp4", "--json"
    )
    objects = objects_of(process)
    assert process.returncode == 0
    assert [values["type"] for values in objects[:1] + objects[-1:]] == ["start", "summary"]
    assert {values["type"] for values in objects[1:-1]} <= {"progress"}
    frames = assert_adds_up(objects[-1]["frames"])
    assert frames["offered"] == 40
    with av.open(str(users_folder / "out.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == frames["delivered"] == objects[-1]["written"]
    assert times == sorted(times)
    assert times[-1] <= 39 / 25 + 0.01


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_run_that_is_interrupted_sums_up_and_finishes_its_video(
    command: Command, users_folder: Path, loop: str
) -> None:
    """Ctrl-C ends an endless scene, with what was done until then in the summary and in the video."""
    process = command(
        "run",
        "scene",
        "-m",
        "users_own:picture",
        "-s",
        "2",
        "--size",
        "64x64",
        "-o",
        "out.mp4",
        "--loop",
        loop,
        "--json",
    )
    assert process.stdout is not None
    told = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [values["type"] for values in told] == ["start", "progress"]
    interrupt(process)
    summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 130
    assert summary["interrupted"] is True
    assert summary["error"] is None
    frames = assert_adds_up(summary["frames"])
    with av.open(str(users_folder / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames["delivered"] == summary["written"]


def test_run_that_is_interrupted_in_a_stage_that_sleeps_does_not_wait_for_it(command: Command) -> None:
    """A stage that takes half a minute for a frame does not keep the process, and its frames are accounted for."""
    process = command("run", "users_own:endless", "-m", "users_own:sleepy", "-s", "2", "--json")
    assert process.stdout is not None
    for expected in ("start", "progress"):
        assert json.loads(process.stdout.readline())["type"] == expected
    assert interrupt(process) < SLEEP_S
    summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 130
    frames = assert_adds_up(summary["frames"])
    assert isinstance(frames["dropped"], dict)
    assert frames["dropped"]["aborted"] >= 1


@pytest.mark.parametrize(
    "arguments",
    [("users_own:silent", "-m", "users_own:small"), ("users_own:stuck", "-m", "users_own:small")],
)
def test_run_that_is_interrupted_before_its_first_frame_ends_at_once(
    command: Command, arguments: tuple[str, ...]
) -> None:
    """A source that never yields, blocking or not, does not keep the process."""
    process = command("run", *arguments)
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    assert interrupt(process) < SLEEP_S
    assert process.returncode == 130
    assert process.stderr.read().startswith("interrupted")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to handle")
def test_run_that_is_terminated_sums_up_as_well(command: Command) -> None:
    """SIGTERM is what a supervisor sends: the same clean end, with its own exit code."""
    process = command("run", "scene", "-m", "users_own:picture", "-s", "1", "--size", "64x64", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    interrupt(process, signal.SIGTERM)
    assert process.returncode == 143
    assert json.loads(process.stdout.read().splitlines()[-1])["type"] == "summary"


def test_run_whose_reader_goes_away_ends_without_a_word(command: Command) -> None:
    """`| head -1` is no reason for a traceback."""
    process = command("run", "scene", "-m", "users_own:picture", "-s", "1", "--size", "64x64", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.wait(TIMEOUT_S)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.returncode == 1


def test_command_without_typer_names_the_extra() -> None:
    """Without the extra, one line says what to install, and the exit code is 2."""
    code = "import sys; sys.modules['typer'] = None; from partime_async.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ}, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: 'typer' is not installed. Install it with: pip install 'partime-async[cli]'\n"
