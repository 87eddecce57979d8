"""The plain page in a real browser, with a fake camera."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright

from partime_async.serve import VIEWER, Access
from tests.serve.demo.browser import WCAG
from tests.serve.test_serve_cameras import picture_service
from tests.serve.visitors import PATIENCE_S, TOKEN, Mirror, serving

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream"),
    *("--use-fake-ui-for-media-stream", "--disable-features=WebRtcHideLocalIpsWithMdns"),
    *("--allow-loopback-in-peer-connection",),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
]
PLAYING = "() => document.getElementById('result').getVideoPlaybackQuality().totalVideoFrames > 5"

REMEMBER_STATES = """() => {
  window.states = [];
  const state = document.getElementById('state');
  new MutationObserver(() => window.states.push(state.textContent)).observe(state, {childList: true});
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open a browser with an empty profile; yield its page, and the errors that the page reports."""
    errors: list[str] = []
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, args=ARGUMENTS, viewport={"width": 1000, "height": 900}
        )
        page = context.pages[0]
        page.set_default_timeout(1e3 * PATIENCE_S)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield page, errors
        finally:
            await context.close()


async def test_viewer_shows_what_the_network_makes_of_the_camera(tmp_path: Path) -> None:
    """With the token typed in; a closed tab frees its place, and nothing on the page goes wrong."""
    access = Access(TOKEN)
    async with serving(picture_service(summary="half as bright"), access=access, page=VIEWER) as rig:
        async with browsing(tmp_path) as (page, errors):
            await page.goto(rig.url)
            await page.get_by_label("Token").fill(TOKEN)
            await page.get_by_role("button", name="Enter").click()
            await page.get_by_role("button", name="Start the camera").click()
            await page.get_by_text("Live", exact=True).wait_for()
            await page.wait_for_function(PLAYING)
            await page.get_by_text("frames/s").wait_for()
            assert await page.get_by_text("half as bright").is_visible()
            found = await Axe().run(page, options=WCAG)
            assert not found.violations_count, found.generate_report()
            assert not await page.get_by_label("Teach this class").is_visible()
            assert TOKEN not in page.url
            assert len(rig.roster.clients) == 1
            await page.goto("about:blank")
            await rig.empty()
        assert errors == []


async def test_viewer_whose_server_ends_the_visit_connects_again(tmp_path: Path) -> None:
    """It says what happens, and comes back by itself under the same name."""
    service = Mirror()
    async with serving(service, page=VIEWER) as rig, browsing(tmp_path) as (page, errors):
        await page.goto(rig.url)
        await page.evaluate(REMEMBER_STATES)
        await page.get_by_role("button", name="Start the camera").click()
        await rig.until(lambda: len(service.here) == 1)
        await page.get_by_text("Live", exact=True).wait_for()
        service.here[0].close("time")
        await rig.until(lambda: len(service.seen) == 2)
        await page.get_by_text("Live", exact=True).wait_for()
        states = await page.evaluate("window.states")
        assert any("goodbye: time" in state for state in states), states
        assert service.seen[0].key == service.seen[1].key
        await page.get_by_role("button", name="Stop").click()
        await rig.empty()
        assert errors == []


async def test_viewer_says_what_is_wrong_in_words_of_its_own(tmp_path: Path) -> None:
    """A server that does not answer, and a camera that is pulled out, are named; the old figures are seen to be old."""
    async with serving(Mirror(), page=VIEWER) as rig, browsing(tmp_path) as (page, errors):
        await page.goto(rig.url)
        await page.route("**/api/offer", lambda route: route.abort())
        await page.get_by_role("button", name="Start the camera").click()
        await page.get_by_text("The server does not answer; trying again").wait_for()
        assert await page.get_by_text("The video comes with the connection.").is_visible()
        assert await page.locator("#figures").get_attribute("data-stale") == "true"
        await page.unroute("**/api/offer")
        await page.get_by_text("Live", exact=True).wait_for()
        assert await page.locator("#figures").get_attribute("data-stale") == "false"
        await page.evaluate(
            "() => document.getElementById('own').srcObject.getVideoTracks()[0].dispatchEvent(new Event('ended'))"
        )
        await page.get_by_text("The camera has stopped").wait_for()
        assert await page.get_by_role("button", name="Start the camera").is_visible()
        await rig.empty()
        assert errors == []
