"""Who may come in, and who may not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from partime_async.errors import ConfigurationError
from partime_async.serve import VIEWER, Access, AccessDenied, Server, make_app
from partime_async.serve.access import is_loopback_host
from tests.serve.visitors import TOKEN, Mirror, serving


def check(access: Access, **changes: str | None) -> None:
    """Let a request from this machine pass, but for these changes."""
    request: dict[str, str | None] = {"host": "localhost:8765", "origin": None, "site": None, "remote": "127.0.0.1"}
    request.update(changes)
    access.check_source(**request)  # type: ignore[arg-type]  # no change is of `is_secure`


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"host": "127.0.0.1"},
        {"host": "[::1]:80"},
        {"host": "192.168.1.20:8765"},
        {"host": "LOCALHOST:1"},
        {"remote": "::ffff:127.0.0.1"},
        {"remote": None},
        {"origin": "http://localhost:8765", "site": "same-origin"},
        {"site": "none"},
        {"origin": "https://lab.example", "site": "cross-site"},
        {"host": "gate.example:443"},
    ],
)
def test_access_of_this_machine_lets_its_own_requests_pass(changes: dict[str, str | None]) -> None:
    """Own names, plain addresses, own pages, listed names and listed pages are served."""
    check(Access(hosts=frozenset({"gate.example"}), origins=frozenset({"https://lab.example"})), **changes)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"host": "evil.example"}, "host"),
        ({"host": "localhost.evil.example"}, "host"),
        ({"host": None}, "host"),
        ({"host": ""}, "host"),
        ({"remote": "192.168.1.7"}, "address"),
        ({"remote": "2001:db8::1"}, "address"),
        ({"remote": "no address"}, "address"),
        ({"origin": "http://evil.example"}, "origin"),
        ({"origin": "null"}, "origin"),
        ({"origin": "http://localhost:9999"}, "origin"),
        ({"site": "cross-site"}, "origin"),
    ],
)
def test_access_of_this_machine_refuses_all_others(changes: dict[str, str | None], cause: str) -> None:
    """Foreign names (rebinding), foreign pages and foreign machines are refused, with the cause."""
    with pytest.raises(AccessDenied) as denied:
        check(Access.local(), **changes)
    assert (denied.value.status, denied.value.cause) == (403, cause)


def test_access_with_a_token_serves_other_machines_that_show_it() -> None:
    """With a token the address does not count, and any of several places may show the token."""
    access = Access(TOKEN)
    check(access, remote="192.168.1.7")
    access.check_token(None, "wrong", TOKEN)
    for offered in [(), (None,), ("",), ("wrong",), (TOKEN[:-1],), (TOKEN + "x",), ("fälsch",)]:
        with pytest.raises(AccessDenied) as denied:
            access.check_token(*offered)
        assert denied.value.status == 401


def test_access_never_shows_its_token() -> None:
    """Neither the representation nor the errors hold it."""
    assert TOKEN not in repr(Access(TOKEN))
    with pytest.raises(ConfigurationError) as refused:
        Access("short")
    assert "short" not in str(refused.value).replace("shorter", "")


@pytest.mark.parametrize("origin", ["lab.example", "ftp://lab.example", "https://lab.example/page", "*"])
def test_access_with_what_is_no_origin_is_refused(origin: str) -> None:
    """An origin is a scheme and a host."""
    with pytest.raises(ConfigurationError, match="no origin"):
        Access(origins=frozenset({origin}))


def test_access_from_a_file_takes_the_token_in_it(tmp_path: Path) -> None:
    """White space does not count, and a file that is missing or too short is an error of the caller."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    Access.from_file(path).check_token(TOKEN)
    path.write_text("short")
    with pytest.raises(ConfigurationError, match="16 or more"):
        Access.from_file(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Access.from_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "is_so"), [("localhost", True), ("::1", True), ("127.8.0.1", True), ("0.0.0.0", False)]
)
def test_loopback_hosts_are_known(host: str, is_so: bool) -> None:
    """Only what no other machine reaches counts."""
    assert is_loopback_host(host) is is_so


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.20", "::"])
def test_server_beyond_this_machine_needs_a_token(host: str) -> None:
    """Without a token it does not even begin to listen."""
    with pytest.raises(ConfigurationError, match="token"):
        Server(make_app({"main": Mirror()}, page=None), host=host)
    Server(make_app({"main": Mirror()}, page=None, access=Access(TOKEN)), host=host)


async def test_server_refuses_foreign_hosts_and_pages_on_every_path() -> None:
    """A page elsewhere gets nothing, by whatever name it reaches the server."""
    async with serving(Mirror()) as rig:
        for path in ("", "api/services", "healthz", "metrics", "static/x", "nothing"):
            await rig.text(path, status=403, headers={"Host": "evil.example"})
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            async with rig.web.post(f"{rig.url}api/offer", json={}, headers=headers) as response:
                assert response.status == 403
            async with rig.web.get(f"{rig.url}api/stream", headers=headers) as response:
                assert response.status == 403
        metrics = await rig.text("metrics")
        assert 'partime_refused_total{cause="host"}' in metrics
        assert 'partime_refused_total{cause="origin"}' in metrics


async def test_server_with_a_token_asks_for_it_everywhere_but_for_its_health(caplog: pytest.LogCaptureFixture) -> None:
    """Header, query, cookie and, for an offer, the body may show it; no log line holds it."""
    caplog.set_level(logging.DEBUG)
    async with serving(Mirror(), access=Access(TOKEN), page=VIEWER) as rig:
        await rig.text("healthz")
        for path in ("api/services", "metrics", "static/viewer.js"):
            await rig.text(path, status=401)
            await rig.text(path, status=401, headers={"Authorization": "Bearer wrong"})
            await rig.text(path, headers={"Authorization": f"Bearer {TOKEN}"})
            await rig.text(path, params={"token": TOKEN})
            await rig.text(path, headers={"Cookie": f'partime_token="{TOKEN}"'})
        async with rig.web.get(f"{rig.url}api/stream") as response:
            assert response.status == 401
        async with rig.web.post(f"{rig.url}api/offer", json={"sdp": "v=0", "type": "offer"}) as response:
            assert response.status == 401
        async with rig.web.post(
            f"{rig.url}api/offer", json={"sdp": "v=0", "type": "offer", "token": TOKEN}
        ) as response:
            assert response.status == 400
        async with rig.stream("?token=" + TOKEN.replace(" ", "+")) as stream:
            assert stream.hello["kind"] == "mirror"
        await rig.empty()
    assert "request.refused" in caplog.text
    assert TOKEN not in caplog.text
    assert TOKEN.replace(" ", "+") not in caplog.text


async def test_address_that_guesses_tokens_is_not_even_told_that_they_are_wrong() -> None:
    """After so many it has to wait; whoever knows the token, at the same address, does not."""
    async with serving(Mirror(), access=Access(TOKEN)) as rig:
        for _ in range(60):
            await rig.text("metrics", status=401, headers={"Authorization": "Bearer a guess"})
        status = 401
        while status == 401:  # a guess a second is free, and on a busy machine some seconds have gone by
            async with rig.web.get(f"{rig.url}metrics", headers={"Authorization": "Bearer a guess"}) as response:
                status = response.status
        assert status == 429
        await rig.text("metrics", headers={"Authorization": f"Bearer {TOKEN}"})


async def test_health_keeps_the_error_to_those_who_know_the_token() -> None:
    """A probe without it sees the state alone."""
    service = Mirror()
    async with serving(service, access=Access(TOKEN)) as rig:
        rig.roster.failure = ValueError("inside")
        said = await rig.text("healthz", status=503)
        assert json.loads(said) == {"status": "stopped", "clients": 0}
        assert "inside" in await rig.text("healthz", status=503, params={"token": TOKEN})


async def test_page_opened_with_the_token_keeps_it_as_a_cookie_and_out_of_the_address() -> None:
    """The cookie is out of reach for scripts and other sites; a wrong token gets a page that asks for it."""
    async with serving(Mirror(), access=Access(TOKEN), page=VIEWER) as rig:
        asked = await rig.text("", status=401)
        assert "needs a token" in asked
        assert "needs a token" in await rig.text("", status=401, params={"token": "wrong"})
        async with rig.web.get(rig.url, params={"token": TOKEN}, allow_redirects=False) as response:
            assert response.status == 303
            assert response.headers["Location"] == "/"
            cookie = response.headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
        assert "partime_async" in await rig.text("", headers={"Cookie": f'partime_token="{TOKEN}"'})


async def test_errors_say_nothing_of_what_is_inside() -> None:
    """What a service's description raises is logged, and the caller hears no more than that."""

    class Broken(Mirror):
        def describe(self) -> dict[str, object]:
            raise RuntimeError("the secret plan")

    async with serving(Broken()) as rig:
        said = await rig.text("api/services", status=500)
        assert json.loads(said) == {"error": "the server could not do this. See its log."}
