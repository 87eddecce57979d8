"""`partime-async serve` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Queue

import aiohttp
import pytest
from typer.testing import CliRunner

from partime_async.cli.app import app
from partime_async.cli.serve import _is_news, _Lossy
from partime_async.client import decode, encode
from partime_async.sockets import Tls
from partime_async.webrtc import Description, Peer, PictureTrack
from tests.certificates import Authority
from tests.commands import Command, commands

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0
MODULE = '''
"""A user's networks."""

import torch
from torch import nn


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Odd(nn.Module):
    def forward(self, value):
        return value


def odd():
    return Odd()
'''


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Command]:
    """Return a function that starts ``partime-async serve`` with these arguments in the user's folder."""
    (tmp_path / "users_own.py").write_text(MODULE)
    with commands(tmp_path) as command:
        yield partial(command, "serve")


SMALL = ("users_own:small", "--shape", "1,4", "--stages", "1", "--port", "0")


def url_of(process: subprocess.Popen[str]) -> str:
    """Wait until a server that was told ``--json`` serves, and return where."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return str(json.loads(line)["url"])


async def visit(url: str, interrupt: Callable[[], None]) -> str:
    """Be a program that teaches and a peer that watches, end the server, and return what the program hears then."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}api/stream") as socket, Peer() as peer:
        await socket.receive_json()
        for number in range(3):
            await socket.send_json({"values": [1, 2, 3, 4], "target": [0, 1], "sequence": number})
            assert (await socket.receive_json())["sequence"] == number
        peer.send_video(PictureTrack())
        control = peer.open_channel("control")
        offer = await peer.offer()
        async with session.post(f"{url}api/offer", json={"sdp": offer.sdp, "type": offer.type}) as response:
            answer = await response.json()
        await peer.accept(Description(answer["sdp"], answer["type"]))
        async with asyncio.timeout(TIMEOUT_S):
            await control.opened()
            interrupt()
            async for message in socket:
                if message.json()["type"] == "bye":
                    return str(message.json()["reason"])
    return "nothing"


def test_server_that_is_interrupted_with_live_clients_ends_well_and_keeps_its_weights(
    start: Command, tmp_path: Path
) -> None:
    """Exit code 0, an event a line, and the file can be served again."""
    process = start(*SMALL, "--learn", "given", "--save", "taught.safetensors", "--json")
    assert asyncio.run(visit(url_of(process), lambda: process.send_signal(signal.SIGINT))) == "stopped"
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, stderr
    events = [json.loads(line) for line in stderr.splitlines()]
    names = [each["event"] for each in events]
    assert names.count("client.joined") == names.count("client.left") == 2
    assert names[-1] == "server.stopped"
    assert {each["why"] for each in events if each["event"] == "client.left"} == {"stopped"}
    again = start(*SMALL, "--weights", "taught.safetensors", "--json")
    url_of(again)
    again.send_signal(signal.SIGTERM)
    assert again.wait(TIMEOUT_S) == 0


async def teach_late(url: str) -> list[str]:
    """Send frames, each target two frames later, and return the outputs to one frame before and after."""
    answers = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}api/stream") as socket:
        await socket.receive_json()
        for number in range(12):
            await socket.send_json({"values": [1, 2, 3, 4], "sequence": number, "reply": True})
            while (said := await socket.receive_json()).get("sequence") != number:
                pass
            answers.append(str(said["values"]))
            if number >= 2:
                await socket.send_json({"type": "label", "sequence": number - 2, "values": [0, 1]})
                await socket.send_json({"type": "ping"})
                while (said := await socket.receive_json())["type"] != "pong":
                    assert said["type"] != "unlearned", said
    return answers


def test_server_that_waits_for_labels_learns_from_late_ones(start: Command) -> None:
    """Without ``--label-delay`` they would be refused."""
    process = start(*SMALL, "--learn", "given", "--label-delay", "4", "--json")
    answers = asyncio.run(teach_late(url_of(process)))
    assert answers[0] == answers[3]
    assert answers[0] != answers[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 0


async def ask(url: str, token: str) -> int:
    """Return the status of a visit with a token, after a result has come."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{url}api/services") as response:
            if response.status != 200:
                return response.status
        async with session.ws_connect(f"{url}api/stream") as socket:
            await socket.receive_json()
            await socket.send_bytes(encode([1.0, 2.0, 3.0, 4.0], sequence=1))
            return 200 if decode(await socket.receive_bytes()).sequence == 1 else 500


def test_server_makes_its_token_and_never_prints_it(start: Command, tmp_path: Path) -> None:
    """The file is its owner's alone; what is printed names the file."""
    process = start(*SMALL, "--token-file", "token", "--own-head", "1", "--learn", "given", "--loss", "cross-entropy")
    assert process.stdout is not None
    line = process.stdout.readline()
    url = line.split(" at ")[1].split("?")[0].strip()
    token = (tmp_path / "token").read_text().strip()
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert asyncio.run(ask(url, "wrong")) == 401
    assert asyncio.run(ask(url, token)) == 200
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert token not in line + stdout + stderr
    assert "token=$(cat token)" in line


async def health(url: str, authority: Authority) -> str:
    """Return what a server over https says of its health."""
    context = await asyncio.to_thread(Tls(ca=authority.ca).context, is_server=False)
    async with aiohttp.ClientSession() as session, session.get(f"{url}healthz", ssl=context) as response:
        return str((await response.json())["status"])


def test_server_with_a_certificate_speaks_https(start: Command, authority: Authority) -> None:
    """As browsers want it of a page that asks for a camera."""
    pair = authority.issue("server")
    files = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    process = start(*SMALL, *files, "--json", "--no-page")
    url = url_of(process)
    assert url.startswith("https://")
    assert asyncio.run(health(url, authority)) == "ready"
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SMALL, "--host", "0.0.0.0"), "Pass an Access with a token"),
        ((*SMALL, "--ice", "nowhere.json"), "Give loopback, host, or a JSON file"),
        ((*SMALL, "--tls-cert", "nowhere.pem"), "nowhere.pem cannot be read"),
        ((*SMALL, "--own-head", "3"), "more"),
        ((*SMALL, "--own-head", "1", "--save", "x.safetensors"), "Use one of them"),
        ((*SMALL, "--weights", "nowhere.safetensors"), "nowhere.safetensors"),
        (("users_own:odd", "--shape", "1,4", "--own-head", "1", "--port", "0"), "Sequential"),
        ((*SMALL, "--save", "nowhere/x.safetensors"), "there is no folder nowhere. Create it first"),
        ((*SMALL, "--save", "."), "it is a folder"),
        ((*SMALL, "--host", "192.0.2.7", "--token-file", "token"), "Give an address of this machine"),
        (("users_own:small", "--port", "0"), "--shape"),
        (("users_own:small", "--shape", "4", "--port", "0"), "Begin with a 1"),
        (("users_own:small", "--shape", "3,4", "--port", "0"), "Begin with a 1"),
        ((*SMALL, "--label-delay", "4"), "--label-delay says how to learn"),
        ((*SMALL, "--learn", "itself", "--label-delay", "4"), "Use --learn given"),
        (("weights.pt", "--port", "0"), "give the file with --weights"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_server_that_cannot_be_as_asked_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    """Exit code 2, and what to do about it."""
    (tmp_path / "users_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    ended = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, ["serve", *arguments])
    assert (ended.exit_code, ended.stdout) == (2, "")
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last


def test_log_of_the_command_leaves_out_what_aiortc_abandons() -> None:
    """A client that vanishes is one line of ours, not a traceback of its; other complaints are heard."""

    def record(name: str, words: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "", 0, words, (), None)

    assert not _is_news(record("asyncio", "Task exception was never retrieved\nfuture: <Task ... /aiortc/x.py:1>"))
    assert _is_news(record("asyncio", "Task exception was never retrieved\nfuture: <Task ... /users_own.py:1>"))
    assert _is_news(record("partime_async.serve", "client.left why=aiortc"))


def test_log_whose_reader_has_stopped_loses_lines_and_holds_nobody_up() -> None:
    """Nothing waits for whoever reads stderr."""
    queue: Queue[logging.LogRecord] = Queue(2)
    handler = _Lossy(queue)
    for number in range(5):
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, f"line {number}", (), None))
    assert [queue.get_nowait().getMessage() for _ in range(queue.qsize())] == ["line 0", "line 1"]
