"""Servers over https: pages, cookies and beacons, streams and WebRTC, and what is said when there is no https."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
import torch
from typer.testing import CliRunner

from partime_async.cli.app import app as command
from partime_async.errors import ConfigurationError
from partime_async.serve import VIEWER, Access, ClientLimits, Server, make_app
from partime_async.serve import server as server_module
from partime_async.sockets import Tls
from partime_async.sockets.tls import Credentials
from tests.certificates import Authority, Pair
from tests.serve.visitors import PATIENCE_S, TOKEN, WIDTH, Mirror, Rig, model_service

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """Return a certificate of this machine, and its key."""
    return authority.issue("server")


@asynccontextmanager
async def serving_https(
    pair: Pair,
    authority: Authority,
    *,
    service: object = None,
    access: Access | None = None,
    tls: Credentials | None = None,
) -> AsyncIterator[Rig]:
    """Serve over https for the time of the block, to a client that trusts the authority."""
    app = make_app({"main": service or Mirror()}, access=access, page=VIEWER, limits=ClientLimits(leave_s=0.5))  # type: ignore[dict-item]
    context = await asyncio.to_thread(Tls(ca=authority.ca).context, is_server=False)
    jar = aiohttp.CookieJar(unsafe=True)  # which keeps cookies of addresses
    async with (
        Server(app, port=0, tls=tls or Tls(pair.certificate, pair.key)) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), cookie_jar=jar) as session,
    ):
        yield Rig(server, app, server.url, session)


@pytest.mark.parametrize("is_context", [False, True], ids=["files", "context"])
async def test_server_over_https_serves_pages_streams_and_webrtc(
    pair: Pair, authority: Authority, is_context: bool
) -> None:
    """The page, a program by wss, and a camera whose offer goes by https: all of it by the one certificate."""
    context: ssl.SSLContext | None = None
    if is_context:
        context = await asyncio.to_thread(Tls(pair.certificate, pair.key).context, is_server=True)
    async with serving_https(pair, authority, tls=context) as rig:
        assert rig.url.startswith("https://127.0.0.1:")
        assert "<!doctype html>" in (await rig.text("")).lower()
        async with rig.stream() as stream:
            await stream.send(torch.ones(1, WIDTH), 7)
            assert (await stream.result()).sequence == 7
        async with rig.call() as caller:
            async with caller.filming() as frames, asyncio.timeout(PATIENCE_S):
                assert (await anext(frames)).image is not None
            async with rig.web.post(f"{rig.url}api/bye", json={"id": caller.id}) as response:  # as a page that closes
                assert response.status == 204
            await rig.empty()


async def test_network_over_https_answers_a_program_by_wss(pair: Pair, authority: Authority) -> None:
    """A network's service is the same behind https."""
    async with serving_https(pair, authority, service=model_service()) as rig, rig.stream() as stream:
        for number in range(20):
            await stream.send(torch.ones(WIDTH), number)
        assert [(await stream.result()).sequence for _ in range(20)] == list(range(20))


async def test_token_over_https_becomes_a_cookie_that_https_alone_carries(pair: Pair, authority: Authority) -> None:
    """Secure, and not for scripts; afterwards the page, the stream and the beacon need no token of their own."""
    async with serving_https(pair, authority, access=Access(TOKEN)) as rig:
        async with rig.web.get(rig.url, params={"token": TOKEN}, allow_redirects=False) as response:
            cookie = response.headers["Set-Cookie"]
            assert {"Secure", "HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
        await rig.text("api/services")
        async with rig.stream() as stream:
            visit = stream.hello
            assert visit["type"] == "hello"
        async with rig.call() as caller:
            origin = rig.url.rstrip("/")
            said = json.dumps({"id": caller.id}).encode()
            headers = {"Origin": origin, "Content-Type": "text/plain;charset=UTF-8"}  # as sendBeacon sends it
            async with rig.web.post(f"{rig.url}api/bye", data=said, headers=headers) as response:
                assert response.status == 204
            await rig.empty()


async def test_page_of_plain_http_may_not_speak_to_https(pair: Pair, authority: Authority) -> None:
    """Whoever is on the way can make a page of the same name without https: it is another origin."""
    async with serving_https(pair, authority) as rig:
        host = rig.url.partition("//")[2].rstrip("/")
        for origin, status in ((f"https://{host}", 200), (f"http://{host}", 403), ("https://evil.example", 403)):
            await rig.text("api/services", status=status, headers={"Origin": origin})
            if status == 200:
                async with rig.web.ws_connect(f"{rig.url}api/stream", headers={"Origin": origin}) as found:
                    assert (await found.receive_json())["type"] == "hello"
            else:
                with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                    await rig.web.ws_connect(f"{rig.url}api/stream", headers={"Origin": origin})


async def test_handshakes_that_fail_are_told_and_those_that_stall_are_cut(
    pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser that does not trust the certificate, plain http, silence: a line each, and others are served."""
    monkeypatch.setattr(server_module, "_PATIENCE_S", 0.5)
    caplog.set_level(logging.INFO, "partime_async.serve")
    async with serving_https(pair, authority) as rig:
        with socket.create_connection(("127.0.0.1", rig.server.port)) as silent:
            async with aiohttp.ClientSession() as stranger:
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await stranger.get(rig.url)
                with suppress(aiohttp.ClientError):
                    await stranger.get(rig.url.replace("https:", "http:"))
            await rig.text("healthz")
            await rig.until(lambda: caplog.text.count("handshake.failed") == 3)
            silent.settimeout(5.0)
            with suppress(ConnectionError):
                assert await asyncio.to_thread(silent.recv, 1) == b""
    assert "http request" in caplog.text
    assert "it took too long" in caplog.text


@pytest.mark.parametrize("what", ["missing", "mismatch", "no-certificate", "client-context"])
async def test_server_whose_certificate_cannot_be_used_enters_no_service(
    pair: Pair, authority: Authority, tmp_path: Path, what: str
) -> None:
    """It is said at once, before a network is started or an address bound."""
    other, mirror = authority.issue("other"), Mirror()
    wrong: dict[str, Credentials] = {
        "missing": Tls(tmp_path / "nowhere.pem"),
        "mismatch": Tls(pair.certificate, other.key),
        "no-certificate": Tls(ca=authority.ca),
        "client-context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    }
    with pytest.raises(ConfigurationError):
        async with serving_https(pair, authority, service=mirror, tls=wrong[what]):
            pass
    assert not mirror.is_entered


async def test_server_beyond_this_machine_without_https_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Browsers would give it no camera, and nobody would know why."""
    app = make_app({"main": Mirror()}, access=Access(TOKEN), page=None)
    async with Server(app, host="0.0.0.0", port=0):
        pass
    [warned] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "Browsers give their camera to https only" in warned.getMessage()
    caplog.clear()
    async with Server(make_app({"main": Mirror()}, page=None), port=0):
        pass
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_demo_over_https_is_reached_from_elsewhere_with_its_token(authority: Authority, tmp_path: Path) -> None:
    """The command in a process of its own: an encrypted key, a token, neither ever printed, and stopped by Ctrl-C."""
    secret = "open sesame"
    locked = authority.issue("locked", password=secret)
    (tmp_path / "password").write_text(f"{secret}\n")
    arguments = ["--no-browser", "--port", "0", "--host", "0.0.0.0", "--token-file", "token", "-v"]
    files = ["--tls-cert", str(locked.certificate), "--tls-key", str(locked.key), "--tls-password-file", "password"]
    with subprocess.Popen(
        [sys.executable, "-m", "partime_async", "demo", *arguments, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split(" at ")[1].split("?")[0]
            token = (tmp_path / "token").read_text().strip()
            assert asyncio.run(statuses(url, token, authority)) == (401, 200)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, stderr
    assert url.startswith("https://")
    assert token not in line + stdout + stderr
    assert secret not in line + stdout + stderr
    assert "server.unencrypted" not in stderr


async def statuses(url: str, token: str, authority: Authority) -> tuple[int, int]:
    """Return how a server answers who does not know the token, and who does."""
    context = Tls(ca=authority.ca).context(is_server=False)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.get(f"{url}api/services") as response:
            refused = response.status
        async with session.get(f"{url}api/services", headers={"Authorization": f"Bearer {token}"}) as response:
            return refused, response.status


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_command_with_files_that_cannot_be_used_says_so_in_one_line(
    pair: Pair, authority: Authority, tmp_path: Path, name: str
) -> None:
    """Exit code 2, with the file's name, before anything is started."""
    closed, wrong = authority.issue("closed", password="open sesame"), tmp_path / "wrong"
    wrong.write_text("open barley")
    encrypted = ["--tls-cert", str(closed.certificate), "--tls-key", str(closed.key)]
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    for arguments, words in (
        (["--tls-cert", str(tmp_path / "nowhere.pem")], "nowhere.pem cannot be read"),
        (["--tls-cert", str(pair.certificate)], "holds no private key"),
        (["--tls-key", str(pair.key)], "Give --tls-cert as well"),
        (["--tls-password-file", str(wrong)], "Give --tls-cert as well"),
        (encrypted, "is encrypted, and there is no password. Name the file"),
        ([*encrypted, "--tls-password-file", str(wrong)], "the password does not open it"),
    ):
        ended = runner.invoke(command, [name, "--port", "0", *arguments])
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert words in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_help_of_the_commands_says_that_cameras_need_https(name: str) -> None:
    """Where the options are."""
    told = " ".join(CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(command, [name, "--help"]).stdout.split())
    assert "--tls-cert" in told
    assert "browsers give their camera to pages of https only" in told
