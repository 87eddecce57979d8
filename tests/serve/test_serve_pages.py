"""The page and its files, what they may load, and what the server tells of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import aiohttp
import pytest
import torch
from aiohttp import web

from partime_async.errors import ConfigurationError
from partime_async.serve import VIEWER, Access, make_app
from partime_async.serve.page import Page
from partime_async.webrtc import Ice, IceServer
from tests.serve.visitors import WIDTH, Mirror, learner, model_service, serving


async def test_page_and_its_files_are_served_with_headers_that_let_nothing_else_in() -> None:
    """No script, style or connection of another place, no frame around it, no guessing of types."""
    async with serving(Mirror(), page=VIEWER) as rig:
        async with rig.web.get(rig.url) as response:
            assert response.content_type == "text/html"
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "aiohttp" not in response.headers["Server"]
        async with rig.web.get(f"{rig.url}static/viewer.js") as response:
            assert response.content_type == "text/javascript"
            assert response.headers["Content-Encoding"] == "gzip"
            tag = response.headers["ETag"]
        async with rig.web.get(f"{rig.url}static/viewer.js", headers={"If-None-Match": tag}) as response:
            assert response.status == 304
        async with rig.web.get(f"{rig.url}static/viewer.js", headers={"Accept-Encoding": "identity"}) as response:
            assert await response.read() == (VIEWER / "viewer.js").read_bytes()


def test_page_loads_nothing_from_elsewhere() -> None:
    """No file of the plain page names another place."""
    for path in VIEWER.iterdir():
        assert not re.search(r"https?://|//\w+\.\w+/", path.read_text()), path


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/page.py", "../page.py", ".hidden", "a%00b", ""])
async def test_file_that_is_not_of_the_page_is_not_there(name: str, tmp_path: Path) -> None:
    """Nothing outside the folder can be named, and nothing hidden in it."""
    (tmp_path / "index.html").write_text("<!doctype html><title>x</title>")
    (tmp_path / ".hidden").write_text("secret")
    async with serving(Mirror(), page=tmp_path) as rig:
        await rig.text(f"static/{name}", status=404)


def test_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    """It is said before anybody opens the page."""
    with pytest.raises(ConfigurationError, match=r"no index\.html"):
        Page(tmp_path)


async def test_server_without_a_page_has_only_its_programming_interface() -> None:
    """The address itself says so."""
    async with serving(Mirror()) as rig:
        await rig.text("", status=404)
        await rig.text("static/viewer.js", status=404)
        assert json.loads(await rig.text("api/services"))["services"] == {"main": {"kind": "mirror"}}


async def test_services_tell_a_browser_which_servers_to_ask() -> None:
    """With the credentials that its connection needs."""
    ice = Ice.servers([IceServer("turn:turn.example:3478", "me", "a credential")])
    app = make_app({"main": Mirror()}, ice=ice, page=None)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/services"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        told = await response.json()
    await runner.cleanup()
    assert told["ice"] == [{"urls": "turn:turn.example:3478", "username": "me", "credential": "a credential"}]


async def test_metrics_tell_of_frames_stages_clients_and_learning() -> None:
    """Counts are exact, and labels have few values whatever clients call themselves."""
    service = model_service(learner=learner())
    async with serving(service) as rig:
        for name in ("one", "two"):
            async with rig.stream(f"?client={name}") as stream:
                for number in range(3):
                    await stream.send(torch.zeros(WIDTH), number, target=torch.zeros(3))
                    await stream.result()
                await stream.send(torch.zeros(WIDTH + 1), 3)
                await stream.words("error")
        await rig.empty()
        await rig.until(lambda: service.pipelines()["model"].statistics().feeds == 1)
        metrics = await rig.text("metrics")
    wanted = {
        'partime_frames_offered_total{pipeline="model",service="main"}': 8,
        'partime_frames_delivered_total{pipeline="model",service="main"}': 6,
        'partime_frames_dropped_total{cause="invalid",pipeline="model",service="main"}': 2,
        'partime_frames_failed_total{pipeline="model",service="main"}': 0,
        'partime_clients_joined_total{kind="websocket",service="main"}': 2,
        'partime_clients_left_total{cause="bye",kind="websocket",service="main"}': 2,
        'partime_connection_total{kind="websocket",service="main",what="frames"}': 8,
        'partime_latency_seconds_count{kind="websocket",service="main"}': 6,
        'partime_learning_steps_total{pipeline="model",service="main",stage="0"}': 6,
        'partime_learning_labels_total{fate="taken",pipeline="model",service="main"}': 6,
        'partime_stage_frames_total{pipeline="model",service="main",stage="0"}': 6,
    }
    found = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert {name: float(found[name]) for name in wanted} == wanted
    assert 'partime_loop_lag_seconds{pipeline="model",quantile="0.99",service="main"}' in found
    assert 'partime_stage_busy_share{pipeline="model",service="main",stage="0"}' in found
    assert 'partime_learning_loss{pipeline="model",service="main"}' in found
    assert "one" not in re.findall(r'"(.*?)"', metrics)


async def test_application_within_another_one_works_under_its_prefix() -> None:
    """Pages, streams and cookies stay under it, and the outer application's own routes stay as they were."""

    async def own(request: web.Request) -> web.Response:
        return web.Response(text="own")

    service = Mirror()
    app = web.Application()
    app.router.add_get("/", own)
    app.add_subapp("/live/", make_app({"main": service}, access=Access("a token of some length"), page=VIEWER))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    assert service.is_entered
    async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get("/") as response:
            assert await response.text() == "own"
            assert "Content-Security-Policy" not in response.headers
        async with session.get("/live/static/viewer.js") as response:
            assert response.status == 401
        async with session.get("/live/", params={"token": "a token of some length"}) as response:
            assert response.status == 200
            assert response.url.path == "/live/"
            assert not response.url.query
        async with session.get("/live/static/viewer.js") as response:
            assert response.status == 200
        async with session.ws_connect("/live/api/stream") as socket:
            assert (await socket.receive_json())["type"] == "hello"
    await runner.cleanup()
    assert not service.is_entered
