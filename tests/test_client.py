"""`client.py`: one file for devices, which works without this library and without torch."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from partime_async import client
from partime_async.client import Clock, Kind, Message, MessageError, Sender, decode, encode, send_lines

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "partime_async", "msgspec", "aiohttp"):
            raise ImportError(f"{name} is not on this device")

sys.meta_path.insert(0, Block())
sys.argv = ["client.py", *sys.argv[1:]]
"""


class Server:
    """A plain socket that takes what comes."""

    def __init__(self, *, is_datagram: bool = False, path: str | None = None) -> None:
        family = socket.AF_INET if path is None else socket.AF_UNIX
        self.socket = socket.socket(family, socket.SOCK_DGRAM if is_datagram else socket.SOCK_STREAM)
        self.socket.settimeout(10.0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(path or ("127.0.0.1", 0))
        if not is_datagram:
            self.socket.listen()
        scheme = "udp" if is_datagram else "tcp"
        self.url = f"unix://{path}" if path else f"{scheme}://127.0.0.1:{self.socket.getsockname()[1]}"

    def accept(self) -> socket.socket:
        """Return the next connection."""
        found, _ = self.socket.accept()
        found.settimeout(10.0)
        return found


@contextmanager
def server(*, is_datagram: bool = False, path: str | None = None) -> Iterator[Server]:
    """Listen, for a while."""
    found = Server(is_datagram=is_datagram, path=path)
    with found.socket:
        yield found


def read(connection: socket.socket) -> Message:
    """Return the next message of a stream."""
    data = b""
    while len(data) < 4 or len(data) < int.from_bytes(data[:4], "little") + 4:
        size = 4 - len(data) if len(data) < 4 else int.from_bytes(data[:4], "little") + 4 - len(data)
        got = connection.recv(size)
        assert got, "the connection ended in the middle of a message"
        data += got
    return decode(data)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ws://127.0.0.1:1/frames", "cannot be connected to. Give tcp://host:port"),
        ("tcp://127.0.0.1:1?format=json", "Only tcps has options"),
        ("unix:///nowhere/at/all", "unix:///nowhere/at/all"),
    ],
)
def test_client_that_cannot_connect_as_asked_says_so_in_one_line(
    url: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its user sees what is wrong with the address, and no traceback."""
    monkeypatch.setattr(sys, "stdin", ["1 2 3"])
    monkeypatch.setattr(client, "Sender", partial(Sender, patience_s=0.1))
    assert client.main([url]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_client_copied_to_a_device_without_torch_sends_the_lines_of_its_input(tmp_path: Path) -> None:
    """The file alone, with numpy beside it: what is piped in arrives, in order, with an end."""
    source = Path(client.__file__)
    shutil.copy(source, tmp_path / "client.py")
    (tmp_path / "run.py").write_text(BLOCKED + "import client\nraise SystemExit(client.main(sys.argv[1:]))\n")
    with (
        server() as found,
        subprocess.Popen(
            [sys.executable, "-W", "error", str(tmp_path / "run.py"), found.url],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"x, y\n1, 2\n\n3 4\n5 6 garbl")
        process.stdin.close()
        with found.accept() as connection:
            messages = [read(connection) for _ in range(3)]
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == b"2 frames sent, 2 lines skipped that are no numbers\n"
    assert [message.array.tolist() for message in messages[:2]] == [[1.0, 2.0], [3.0, 4.0]]
    assert [(message.kind, message.sequence) for message in messages] == [
        (Kind.FRAME, 0),
        (Kind.FRAME, 1),
        (Kind.BYE, 2),
    ]


def test_client_without_an_address_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """Anything but one URL is a mistake."""
    assert client.main([]) == 2
    assert "usage: python client.py URL" in capsys.readouterr().err


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_sender_over_a_stream_sends_frames_targets_and_reads_results(transport: str, tmp_path: Path) -> None:
    """A frame comes behind its target, with the sender's time; results come back in whatever pieces."""
    path = str(tmp_path / "a.sock") if transport == "unix" else None
    with server(path=path) as found, Sender(found.url) as sender:
        assert sender.send(np.ones((2, 2), np.uint8), target=[7], wants_reply=True) == 0
        with found.accept() as connection:
            target, frame = read(connection), read(connection)
            reply = encode([5.0], sequence=0, kind=Kind.RESULT)
            for part in (reply[:3], reply[3:20], reply[20:] + reply[:5], reply[5:]):
                connection.sendall(part)
            first, second = sender.receive(5.0), sender.receive(5.0)
            assert sender.receive(0.01) is None
            sender.hello()
            assert read(connection).kind is Kind.HELLO
    assert (target.kind, target.sequence, target.array.tolist()) == (Kind.TARGET, 0, [7.0])
    assert (frame.array.shape, str(frame.array.dtype), frame.wants_reply) == ((2, 2), "uint8", True)
    assert frame.clock is Clock.MONOTONIC
    assert frame.captured_at is not None
    assert abs(time.monotonic() - frame.captured_at) < 10
    for result in (first, second):
        assert result is not None
        assert (result.kind, result.array.tolist()) == (Kind.RESULT, [5.0])


def test_sender_over_udp_sends_datagrams_and_says_goodbye_three_times() -> None:
    """Each message is a datagram; the last word is repeated, because datagrams get lost."""
    with server(is_datagram=True) as found:
        with Sender(found.url) as sender:
            sender.send([1.0])
            data, address = found.socket.recvfrom(65536)
            assert decode(data).array.tolist() == [1.0]
            found.socket.sendto(encode([2.0], sequence=0, kind=Kind.RESULT), address)
            result = sender.receive(5.0)
            assert result is not None
            assert result.kind is Kind.RESULT
            with pytest.raises(ValueError, match="a datagram carries 65507 bytes"):
                sender.send(np.zeros(20_000, np.float32))
        goodbyes = [decode(found.socket.recv(65536)) for _ in range(3)]
    assert [(message.kind, message.sequence) for message in goodbyes] == [(Kind.BYE, 1)] * 3


def test_sender_over_udp_without_a_listener_loses_frames_and_goes_on() -> None:
    """Nobody hears a datagram that nobody listens for; that is no error of the device."""
    with server(is_datagram=True) as found:
        url = found.url
    with Sender(url) as sender:
        assert [sender.send([1.0]) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_sender_connects_again_after_a_break() -> None:
    """A connection that the other side cut is made anew by sending on."""
    with server() as found, Sender(found.url, patience_s=10.0) as sender:
        sender.send([0.0])
        with found.accept() as connection:
            read(connection)
        with pytest.raises(ConnectionResetError, match="has closed the connection"):
            sender.receive(5.0)
        sender.send([1.0])
        with found.accept() as connection:
            assert read(connection).sequence == 1


def test_sender_that_waits_for_a_listener_finds_it() -> None:
    """A device may be switched on first."""
    with server() as found:
        url, port = found.url, found.socket.getsockname()[1]
    got: list[Message] = []

    def listen() -> None:
        time.sleep(0.3)
        with socket.socket() as late:
            late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            late.bind(("127.0.0.1", port))
            late.listen()
            late.settimeout(10.0)
            connection, _ = late.accept()
            with connection:
                got.append(read(connection))

    thread = threading.Thread(target=listen)
    thread.start()
    with Sender(url, patience_s=10.0) as sender:
        assert send_lines(sender, ["1 2 3", "no numbers"]) == 1
        thread.join(10.0)
    assert got[0].array.tolist() == [1.0, 2.0, 3.0]


def test_sender_without_a_listener_gives_up_when_its_patience_ends() -> None:
    """The error names the address and what to look at."""
    with server() as found:
        url = found.url
    with pytest.raises(ConnectionError, match=r"could not be reached within 0\.2 s.*Check that the pipeline listens"):
        Sender(url, patience_s=0.2).send([1.0])


@pytest.mark.parametrize("url", ["ws://127.0.0.1:9", "127.0.0.1:9", "tcp://127.0.0.1", "udp://:9"])
def test_sender_with_an_address_it_cannot_reach_is_refused(url: str) -> None:
    """What it cannot do is said before the first frame."""
    with pytest.raises(ValueError, match="Give"):
        Sender(url)


def test_sender_reading_rubbish_says_so() -> None:
    """What is no message is an error of the other side."""
    with server() as found, Sender(found.url) as sender:
        sender.send([1.0])
        with found.accept() as connection:
            connection.sendall(bytes(40))
            with pytest.raises(MessageError):
                sender.receive(5.0)
