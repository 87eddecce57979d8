"""The senders in C and in a shell, and the examples of docs/wire.md: what they write is what is read."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from partime_async.client import DTYPES, HEADER, Clock, Kind
from partime_async.sockets import SocketFrame, listen, wire
from tests.sockets.peers import port_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


async def run(*command: str, given: bytes = b"") -> None:
    """Run a program to its end."""
    # A pipe is broken by then if a program that reads nothing has ended.
    stdin = asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=stdin)
    await process.communicate(given or None)
    assert process.returncode == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.skipif(sys.byteorder != "little", reason="the example is for little-endian machines")
async def test_c_sender_is_understood(tmp_path: Path) -> None:
    """The C struct of the example is the message: numbers, times and values arrive."""
    program = str(tmp_path / "send_frames")
    await run(
        "cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-o", program, str(EXAMPLES / "send_frames.c"), "-lm"
    )
    frames: list[SocketFrame] = []
    async with listen("tcp://127.0.0.1:0", is_endless=False) as source:
        await run(program, "127.0.0.1", str(port_of(source.url)), "20")
        frames = [frame async for frame in source]
    assert [frame.sequence for frame in frames] == list(range(20))
    times = [frame.captured_at or 0.0 for frame in frames]
    assert times == sorted(times)
    assert frames[3].clock is Clock.MONOTONIC
    value = frames[3].value
    assert isinstance(value, torch.Tensor)
    assert torch.allclose(value, torch.sin(torch.arange(6) + 0.3)[None], atol=1e-5)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
async def test_shell_sender_is_understood() -> None:
    """Lines of a pipe become frames."""
    async with listen("tcp://127.0.0.1:0?format=csv", is_endless=False) as source:
        port = str(port_of(source.url))
        await run("bash", str(EXAMPLES / "send_sensor.sh"), "127.0.0.1", port, given=b"1,2\n3,4\n5,6\n")
        values = [frame.value async for frame in source]
    assert [value.tolist() for value in values if isinstance(value, torch.Tensor)] == [
        [[1.0, 2.0]],
        [[3.0, 4.0]],
        [[5.0, 6.0]],
    ]


def test_documented_message_is_what_the_encoder_writes() -> None:
    """The bytes in docs/wire.md are a message, and the tables name every kind and dtype."""
    text = (ROOT / "docs" / "wire.md").read_text()
    [shown] = re.findall(r"```\n(24 00.*?)```", text, re.DOTALL)
    data = bytes.fromhex("".join(re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1] for line in shown.splitlines()))  # type: ignore[index]
    assert data == wire.encode([1.0, 2.0], sequence=7, captured_at=1.5, wants_reply=True)
    for kind in Kind:
        assert re.search(rf"\| {kind.value} \| {kind.name.lower()} \|", text)
    assert f"| {len(DTYPES) - 1} |\n" in text
    assert "| 28 | 4 × dimensions | shape |" in text  # noqa: RUF001 - as it is written there
    assert HEADER.size == 28
