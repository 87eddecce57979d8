"""Encrypted sockets: everything that goes through plain ones, and what TLS adds to it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch

from partime_async.errors import SourceError
from partime_async.sockets import (
    Backoff,
    Limits,
    SensorServer,
    SocketSink,
    Tls,
    accept,
    connect,
    listen,
    wire,
)
from tests.certificates import Authority
from tests.sockets.peers import (
    PATIENT,
    WIDTH,
    Source,
    all_left,
    assert_shut,
    check,
    collected,
    frame,
    goodbye,
    knocks,
    next_of,
    port_of,
    read_message,
    serving,
    until,
    until_pushed_back,
    vector,
)

URLS = ["tcps://127.0.0.1:0", "wss://127.0.0.1:0/frames"]
QUICK = Backoff(first_s=0.01, longest_s=0.05)


@pytest.fixture(scope="module")
def own(authority: Authority) -> Tls:
    """Return what a server shows."""
    pair = authority.issue("server")
    return Tls(pair.certificate, pair.key)


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> Tls:
    """Return what a client trusts."""
    return Tls(ca=authority.ca)


@pytest.fixture(params=URLS, ids=["tcps", "wss"])
def url(request: pytest.FixtureRequest) -> str:
    """Return where to listen."""
    return str(request.param)


async def reach(server: SensorServer, tls: Tls) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as a device that knows nothing of the library."""
    return await asyncio.open_connection("127.0.0.1", port_of(server.url), ssl=await context_of(tls))


async def context_of(tls: Tls) -> ssl.SSLContext:
    """Return a client's context."""
    return await asyncio.to_thread(tls.context, is_server=False)


@pytest.mark.parametrize("form", ["binary", "json"])
@pytest.mark.parametrize("is_listening", [True, False], ids=["listen", "connect"])
async def test_source_over_tls_gives_what_a_sink_sends(
    url: str, form: str, is_listening: bool, own: Tls, trusting: Tls
) -> None:
    """Both ways round: all frames, in order, and an end."""
    source: Source
    url = f"{url}?format={form}"
    if is_listening:
        source = listen(url, is_endless=False, tls=own)
        sink = SocketSink((await source.open()).url, tls=trusting, limits=PATIENT)
    else:
        sink = SocketSink(url, listen=True, tls=own, limits=PATIENT)
    async with sink:
        if not is_listening:
            source = connect(sink.url, tls=trusting)
        reading = asyncio.create_task(collected(source))
        await until(lambda: sink.statistics().connected == 1)
        for number in range(20):
            await sink.write(torch.full((WIDTH,), float(number)), captured_at=time.monotonic())
    frames = await reading
    await source.aclose()
    assert [each.sequence for each in frames] == list(range(20))
    [client] = source.statistics().clients
    check(client)
    assert (client.closed, client.frames, client.sequence.missing) == ("bye", 20, 0)
    assert (sink.statistics().sent, sink.statistics().dropped) == (20, 0)


async def test_server_over_tls_answers_those_who_ask(own: Tls, trusting: Tls) -> None:
    """A device of any make gets its results, and names its server by host or by address."""
    async with serving("tcps://localhost:0", tls=own) as server:
        context = await context_of(trusting)
        reader, writer = await asyncio.open_connection("localhost", port_of(server.url), ssl=context)
        for number in range(10):
            writer.write(frame(number, wants_reply=True))
        answers = [await read_message(reader) for _ in range(10)]
        writer.write(goodbye(10))
        writer.close()
        await writer.wait_closed()
        [client] = await all_left(server, 1)
    assert [answer.array.tolist() for answer in answers] == [[2.0 * n] * WIDTH for n in range(10)]
    assert (client.closed, client.frames, server.statistics().failed_handshakes) == ("bye", 10, 0)


async def test_files_named_in_the_address_are_those_of_tls(url: str, authority: Authority, own: Tls) -> None:
    """As the command line has no other place for them; what is printed has none of it."""
    async with serving(f"{url}?cert={own.certificate}&key={own.key}") as server:
        assert "pem" not in server.url
        async with SocketSink(f"{server.url}?ca={authority.ca}", limits=PATIENT) as sink:
            await sink.write(vector(1))
        [client] = await all_left(server, 1)
    assert (client.frames, client.closed) == (1, "bye")


async def test_server_with_a_ca_lets_in_whose_certificate_it_has_signed(
    url: str, authority: Authority, own: Tls, tmp_path: Path
) -> None:
    """Devices show certificates of their own; strangers, and those without, send nothing."""
    device, stranger = authority.issue("device"), Authority(tmp_path).issue("stranger")
    asking = Tls(own.certificate, own.key, authority.ca)
    async with serving(url, tls=asking) as server:
        shown = Tls(device.certificate, device.key, authority.ca)
        async with SocketSink(server.url, tls=shown, limits=PATIENT) as sink:
            await sink.write(vector(1))
        [client] = await all_left(server, 1)
        for shown in (Tls(ca=authority.ca), Tls(stranger.certificate, stranger.key, authority.ca)):
            before = server.statistics().failed_handshakes
            limits = Limits(close_s=0.1)
            async with SocketSink(server.url, tls=shown, backoff=QUICK, limits=limits) as sink:
                await sink.write(vector(1))
                await until(lambda before=before: server.statistics().failed_handshakes > before)  # type: ignore[misc]
        assert server.statistics().arrived == 1
    assert (client.frames, client.closed) == (1, "bye")


async def test_source_over_tls_that_nobody_reads_pushes_back_and_loses_nothing(own: Tls, trusting: Tls) -> None:
    """Encrypted bytes wait in no buffer without a bound: the device is held back, and all of its frames come."""
    source = listen("tcps://127.0.0.1:0", capacity=2, is_endless=False, tls=own)
    await source.open()
    context = await context_of(trusting)
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url), ssl=context)
    sent = await until_pushed_back(writer)
    reading = asyncio.create_task(collected(source))
    await writer.drain()
    writer.write(goodbye(sent))
    writer.close()
    frames = await reading
    assert [each.sequence for each in frames] == list(range(sent))
    await writer.wait_closed()


async def test_server_over_tls_shows_out_who_reads_nothing(own: Tls, trusting: Tls) -> None:
    """Results that nobody reads are bounded as well: within its time the client is stalled, and others are served."""
    limits = Limits(unsent_bytes=1 << 14, stalled_s=0.2, close_s=0.2)
    answer = np.zeros(1 << 16, np.float32)
    async with serving("tcps://127.0.0.1:0", tls=own, limits=limits, respond=lambda _: answer) as server:
        reader, writer = await reach(server, trusting)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        with suppress(OSError):
            for number in range(200):
                writer.write(frame(number, wants_reply=True))
                await asyncio.sleep(0)
        await until(lambda: any(each.closed == "stalled" for each in server.statistics().clients))
        writer.transport.abort()
        await all_left(server, 1)


async def test_handshake_that_stalls_costs_that_client_only(url: str, own: Tls, trusting: Tls) -> None:
    """Who connects and says nothing, or half of it, is cut in time and counted; a good client beside it is served."""
    limits = Limits(handshake_s=2.0, clients=1)
    async with serving(url, tls=own, limits=limits) as server:
        silent, halfway = (socket.create_connection(("127.0.0.1", port_of(server.url))) for _ in range(2))
        halfway.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a ClientHello
        async with SocketSink(server.url, tls=trusting, limits=PATIENT) as sink:
            await sink.write(vector(1))
        [client] = await all_left(server, 1)
        await until(lambda: server.statistics().failed_handshakes >= 2)
        for each in (silent, halfway):
            each.setblocking(False)
            with suppress(ConnectionError):
                async with asyncio.timeout(20.0):
                    assert await asyncio.get_running_loop().sock_recv(each, 1) == b""
            each.close()
    assert (client.frames, client.closed, server.statistics().refused) == (1, "bye", 0)


async def test_handshakes_beyond_the_bound_cut_the_oldest(
    own: Tls, trusting: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connect and say nothing, a device that speaks gets in, and descriptors are bounded."""
    monkeypatch.setattr(accept, "MOST_HANDSHAKES", 4)
    with ExitStack() as stack:
        async with serving("tcps://127.0.0.1:0", tls=own, limits=Limits(handshake_s=30.0)) as server:
            for _ in range(20):
                stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server.url))))
            await until(lambda: server.statistics().failed_handshakes >= 16)
            async with asyncio.timeout(20.0):
                reader, writer = await reach(server, trusting)
                writer.write(frame(0, wants_reply=True))
                assert (await read_message(reader)).sequence == 0
            writer.close()
            await writer.wait_closed()
            await all_left(server, 1)
        # Those still under way are cut when the server is left.


@pytest.mark.parametrize("turns", range(4))
async def test_clients_in_their_handshake_while_the_server_is_left_are_cut(url: str, own: Tls, turns: int) -> None:
    """Whatever step they are at, nothing of them stays behind."""
    async with serving(url, tls=own) as server:
        found = await knocks(server, turns)
    assert_shut(found)


async def test_rubbish_and_plain_clients_fail_their_handshake_and_are_counted(
    url: str, own: Tls, trusting: Tls
) -> None:
    """A browser by http, a scanner, and a client that hangs up: none gets in, and a good one is served."""
    async with serving(url, tls=own) as server:
        for said in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), frame(0), b""):
            with socket.create_connection(("127.0.0.1", port_of(server.url))) as found:
                found.sendall(said)
                before = server.statistics().failed_handshakes
                if not said:
                    found.close()
                await until(lambda before=before: server.statistics().failed_handshakes > before)  # type: ignore[misc]
        async with SocketSink(server.url, tls=trusting, limits=PATIENT) as sink:
            await sink.write(vector(1))
        [client] = await all_left(server, 1)
    assert (client.frames, server.statistics().failed_handshakes) == (1, 4)


async def test_client_of_a_server_that_speaks_no_tls_says_so(trusting: Tls) -> None:
    """The mistake is named when its patience ends."""
    for scheme, path in (("tcp", ""), ("ws", "/frames")):
        async with serving(f"{scheme}://127.0.0.1:0{path}", limits=Limits(message_s=0.2)) as server:
            source = connect(server.url.replace("://", "s://"), tls=trusting, patience_s=0.2, backoff=QUICK)
            with pytest.raises(SourceError, match=r"TLS|ssl|SSL"):
                await anext(source)
            await source.aclose()


async def test_sink_over_tls_connects_again_after_a_break(own: Tls, trusting: Tls) -> None:
    """A connection that is cut is made anew, with another handshake; the result at work is sent again."""
    source = listen("tcps://127.0.0.1:0", tls=own)
    await source.open()
    async with SocketSink(source.url, tls=trusting, backoff=QUICK) as sink:
        await sink.write(vector(0))
        assert (await anext(source)).sequence == 0
        [link] = [connection.link for connection in source._here.values()]
        link._transport.abort()  # type: ignore[attr-defined]
        await until(lambda: source.statistics().arrived == 1 and not source.statistics().connected)
        assert (await next_of(source, sink)).sequence >= 1
        await source.aclose()


async def test_full_server_over_tls_says_so_to_who_may_not_come_in(own: Tls, trusting: Tls) -> None:
    """The word of refusal is encrypted as everything else."""
    async with serving("tcps://127.0.0.1:0", tls=own, limits=Limits(clients=1)) as server:
        _, first = await reach(server, trusting)
        await until(lambda: server.statistics().connected == 1)
        reader, second = await reach(server, trusting)
        assert b"Come later" in await reader.read()
        for writer in (first, second):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await all_left(server, 1)
    assert server.statistics().refused == 1


async def test_websocket_over_tls_lets_pages_of_named_origins_in(own: Tls, trusting: Tls) -> None:
    """The checks of plain WebSockets hold, and a plain request is answered by https."""
    context = await context_of(trusting)
    async with (
        serving("wss://127.0.0.1:0/frames", tls=own, origins=["https://good.example"]) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
    ):
        async with session.get(f"https://127.0.0.1:{port_of(server.url)}/frames") as response:
            assert response.status == 426
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect(server.url, headers={"Origin": "https://evil.example"})
        async with session.ws_connect(server.url, headers={"Origin": "https://good.example"}) as found:
            await found.send_bytes(frame(0, wants_reply=True))
            assert wire.decode(await found.receive_bytes()).sequence == 0


async def test_websocket_over_tls_that_never_asks_is_cut(own: Tls, trusting: Tls) -> None:
    """The time for a first request begins when the handshake is done."""
    async with serving("wss://127.0.0.1:0/frames", tls=own, limits=Limits(message_s=0.2, handshake_s=2.0)) as server:
        reader, writer = await reach(server, trusting)
        async with asyncio.timeout(20.0):
            with suppress(OSError):
                assert await reader.read() == b""
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        assert server.statistics().failed_handshakes == 0


async def test_server_over_tls_at_an_address_in_use_says_so_and_leaves_nothing(url: str, own: Tls) -> None:
    """As over plain sockets: the error names the address."""
    async with serving(url, tls=own) as server:
        second = listen(server.url, tls=own)
        with pytest.raises(
            SourceError, match=r"cannot listen at (tcps|wss)://127\.0\.0\.1:\d+.*in use.*Choose another"
        ):
            await second.open()
        await second.aclose()


def highest_descriptor() -> int:
    """Return the number of the last file that this process has open."""
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir())


async def test_server_without_descriptors_goes_on_when_there_are_some_again(
    own: Tls, trusting: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that comes when the system has none left waits a moment, and is let in."""
    monkeypatch.setattr(accept, "_BREATH_S", 0.05)
    context = await context_of(trusting)
    async with serving("tcps://127.0.0.1:0", tls=own) as server:
        address = ("127.0.0.1", port_of(server.url))
        found = socket.create_connection(address)  # made before there are none left; waits in the kernel's queue
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = highest_descriptor()
        spare = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
            with suppress(OSError):
                while True:
                    spare.append(os.open(os.devnull, os.O_RDONLY))
            await asyncio.sleep(0.2)
            assert server.statistics().arrived == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in spare:
                os.close(each)
        reader, writer = await asyncio.open_connection(sock=found, ssl=context, server_hostname="127.0.0.1")
        writer.write(frame(0, wants_reply=True))
        assert (await read_message(reader)).sequence == 0
        writer.close()
        await writer.wait_closed()
        await all_left(server, 1)


@pytest.fixture
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the files for each connection."""
    monkeypatch.setattr(accept, "_LOOKS_S", 0.0)


@pytest.mark.usefixtures("_looks_at_once")
async def test_renewed_certificate_is_shown_to_who_comes_next(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files are replaced as certbot does it; one that cannot be used is left, and told of."""
    served, renewed = authority.issue("served"), authority.issue("renewed")
    tls, trusting = Tls(served.certificate, served.key), Tls(ca=authority.ca)

    async def serial(server: SensorServer) -> str:
        _, writer = await reach(server, trusting)
        found = str(writer.get_extra_info("peercert")["serialNumber"])
        writer.close()
        await writer.wait_closed()
        return found

    def write(certificate: bytes, key: bytes, stamp_s: int) -> None:
        for path, data in ((served.certificate, certificate), (served.key, key)):
            path.write_bytes(data)
            os.utime(path, (stamp_s, stamp_s))

    good = renewed.certificate.read_bytes(), renewed.key.read_bytes()
    async with serving("tcps://127.0.0.1:0", tls=tls) as server:
        first = await serial(server)
        assert await serial(server) == first
        await asyncio.to_thread(write, b"half of it", b"", 1000)
        logging.getLogger("partime_async.sockets.accept").propagate = True
        assert await serial(server) == first
        assert "the certificate before is kept" in caplog.text
        await asyncio.to_thread(write, *good, 2000)
        assert await serial(server) != first
