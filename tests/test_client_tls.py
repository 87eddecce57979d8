"""`client.py` with TLS: the standard library's, for devices."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from partime_async import client
from partime_async.client import Kind, Message, Sender, UntrustedError, decode, encode
from tests.certificates import Authority, Pair


@dataclass(slots=True)
class Receiver:
    """A plain server that takes one connection after the other, and answers who asks.

    Attributes:
        port: Where it listens.
        got: What came.
        shown: Names in the certificates that clients have shown.
    """

    port: int
    got: list[Message] = field(default_factory=list)
    shown: list[object] = field(default_factory=list)

    def serve(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        """Take connections until the socket is closed."""
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            plain.settimeout(10.0)
            with suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as found:
                self.shown.append(found.getpeercert())
                self._talk(found)

    def _talk(self, found: ssl.SSLSocket) -> None:
        data = b""
        while chunk := found.recv(1 << 16):
            data += chunk
            while len(data) >= 4 and len(data) >= (size := int.from_bytes(data[:4], "little") + 4):
                message, data = decode(data[:size]), data[size:]
                self.got.append(message)
                if message.wants_reply:
                    found.sendall(encode([2.0], sequence=message.sequence, kind=Kind.RESULT))
        with suppress(OSError, ValueError):
            found.unwrap()


@contextmanager
def receiving(pair: Pair, *, ca: Path | None = None) -> Iterator[Receiver]:
    """Listen, for a while."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if ca is not None:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))
    receiver = Receiver(listening.getsockname()[1])
    thread = threading.Thread(target=receiver.serve, args=(listening, context))
    thread.start()
    try:
        yield receiver
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(20.0)


@pytest.mark.parametrize("is_context", [False, True], ids=["files", "context"])
def test_sender_over_tls_sends_frames_and_reads_results(authority: Authority, is_context: bool) -> None:
    """As over TCP: frames in order, results back, and an end that says how many there were."""
    with receiving(authority.issue("server")) as found:
        url = f"tcps://127.0.0.1:{found.port}"
        tls = ssl.create_default_context(cafile=authority.ca) if is_context else None
        with Sender(url if is_context else f"{url}?ca={authority.ca}", tls=tls) as sender:
            for number in range(100):
                assert sender.send([float(number)], wants_reply=number == 99) == number
            result = sender.receive(5.0)
            assert sender.receive(0.01) is None
            sender.hello()
    assert result is not None
    assert (result.kind, result.sequence) == (Kind.RESULT, 99)
    assert [each.sequence for each in found.got[:100]] == list(range(100))
    assert [each.kind for each in found.got[100:]] == [Kind.HELLO, Kind.BYE]


def test_sender_that_never_reads_loses_no_frame_when_it_closes(authority: Authority) -> None:
    """The server says things by itself (session tickets); closed with those unread, a socket would cut off its tail."""
    pair = authority.issue("server")
    for _ in range(5):
        with receiving(pair) as found, Sender(f"tcps://127.0.0.1:{found.port}?ca={authority.ca}") as sender:
            for number in range(500):
                sender.send([float(number)] * 1000)
        assert (len(found.got), found.got[-1].kind, found.got[-1].sequence) == (501, Kind.BYE, 500)


def test_sender_shows_its_certificate_to_a_server_that_asks(authority: Authority) -> None:
    """Its files are named in the address."""
    device = authority.issue("device")
    with receiving(authority.issue("server"), ca=authority.ca) as found:
        url = f"tcps://127.0.0.1:{found.port}?ca={authority.ca}&cert={device.certificate}&key={device.key}"
        with Sender(url) as sender:
            sender.send([1.0])
    assert len(found.got) == 2
    [shown] = found.shown
    assert isinstance(shown, dict)
    assert shown["subject"] == ((("commonName", "device"),),)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("self-signed", r"127\.0\.0\.1 is not trusted: self-signed certificate\. Name the one that has signed it"),
        ("expired", r"certificate has expired\. Let the server renew it"),
        ("elsewhere", r"not valid for '127\.0\.0\.1'\. Connect by a name that is in it"),
    ],
)
def test_sender_to_an_untrusted_server_says_so_at_once(authority: Authority, kind: str, words: str) -> None:
    """However patient it is: to try again would not help."""
    names = ("elsewhere.example",) if kind == "elsewhere" else ()
    pair = authority.issue("server", *names, is_expired=kind == "expired", is_self_signed=kind == "self-signed")
    with receiving(pair) as found, Sender(f"tcps://127.0.0.1:{found.port}?ca={authority.ca}") as sender:
        with pytest.raises(UntrustedError, match=words) as caught:
            sender.send([1.0])
        assert caught.value.host == "127.0.0.1"
    assert not found.got


def test_sender_to_a_server_without_tls_gives_up_when_its_patience_ends(authority: Authority) -> None:
    """The error names the address, without its files."""
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def talk() -> None:
            with suppress(OSError):
                while True:
                    found, _ = plain.accept()
                    found.sendall(b"220 this is no TLS\r\n")
                    found.close()

        thread = threading.Thread(target=talk)
        thread.start()
        url = f"tcps://127.0.0.1:{plain.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"^{url} could not be reached within 0\.3 s"):
            Sender(f"{url}?ca={authority.ca}", patience_s=0.3).send([1.0])
        plain.shutdown(socket.SHUT_RDWR)
        thread.join(10.0)


def test_sender_with_files_that_cannot_be_used_is_refused(authority: Authority, tmp_path: Path) -> None:
    """Said before the first frame."""
    closed = authority.issue("closed", password="open sesame")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_bytes(b"hello")
    base = "tcps://127.0.0.1:9"
    with pytest.raises(FileNotFoundError):
        Sender(f"{base}?ca={tmp_path / 'nowhere.pem'}")
    for url, words in (
        (f"{base}?ca={rubbish}", "rubbish.pem cannot be used"),
        (f"{base}?cert={closed.certificate}&key={closed.key}", "a key that is not encrypted"),
        (f"{base}?kee=x", "unknown option 'kee'"),
        ("tcp://127.0.0.1:9?ca=x", "Only tcps has options"),
    ):
        with pytest.raises(ValueError, match=words):
            Sender(url)
    with pytest.raises(ValueError, match="tcp is not encrypted"):
        Sender("tcp://127.0.0.1:9", tls=ssl.create_default_context())


def test_client_alone_sends_the_lines_of_its_input_over_tls(authority: Authority, tmp_path: Path) -> None:
    """The one file, without this library, by its command."""
    shutil.copy(client.__file__, tmp_path / "alone.py")
    with receiving(authority.issue("server")) as found:
        url = f"tcps://127.0.0.1:{found.port}?ca={authority.ca}"
        command = [sys.executable, "-W", "error", str(tmp_path / "alone.py"), url]
        ended = subprocess.run(command, input=b"1 2\n3 4\n", capture_output=True, timeout=60, check=True)
    assert ended.stderr == b"2 frames sent\n"
    assert [each.array.tolist() for each in found.got[:2]] == [[1.0, 2.0], [3.0, 4.0]]
