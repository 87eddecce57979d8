"""The demo's page as people with a screen reader, a keyboard or weak eyes meet it, checked by axe-core."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from tests.serve.demo.browser import CHROMIUM, WCAG, chromium, demo_server, wait_live

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def visit() -> Iterator[tuple[Page, subprocess.Popen[str]]]:
    """Open the demo, and give its server, too."""
    with sync_playwright() as playwright, demo_server() as (url, server), chromium(playwright) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, reduced_motion="reduce")
        page.goto(url)
        wait_live(page)
        yield page, server


@pytest.fixture
def page(visit: tuple[Page, subprocess.Popen[str]]) -> Page:
    """Give the page."""
    return visit[0]


@pytest.fixture
def server(visit: tuple[Page, subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Give the demo's process."""
    return visit[1]


def check(page: Page) -> None:
    """Find nothing, on a desk and on a phone, in the light and in the dark."""
    schemes: list[Literal["light", "dark"]] = ["light", "dark"]
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 1000})
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(300)  # colours take a moment to change
            found = Axe().run(page, options=WCAG)
            assert not found.violations_count, f"{width} pixels, {scheme}: {found.generate_report()}"
    page.set_viewport_size({"width": 1280, "height": 1000})


def test_page_on_which_nothing_was_taught_meets_wcag(page: Page) -> None:
    """As it opens."""
    check(page)


def test_page_on_which_two_classes_were_taught_meets_wcag(page: Page) -> None:
    """With a verdict over the video, bars, kept pictures, and a button that asks whether it is meant."""
    for label in (0, 1):
        page.locator(".look").nth(label).click()
        page.keyboard.down(str(label + 1))
        page.wait_for_selector(f'.class[data-label="{label}"] .kept')
        page.keyboard.up(str(label + 1))
    page.wait_for_selector("#verdict", state="visible")
    page.click("#snapshot")
    page.wait_for_selector("#back:enabled")
    page.click("#reset")
    check(page)


def test_page_that_is_frozen_meets_wcag(page: Page) -> None:
    """With buttons that are out of use."""
    page.keyboard.press("f")
    page.wait_for_selector('#learning[aria-checked="false"]')
    check(page)
    page.keyboard.press("f")
    page.wait_for_selector('#learning[aria-checked="true"]')


def test_page_that_predicts_meets_wcag(page: Page) -> None:
    """With its three pictures and the charts running."""
    page.click("#mode-predict")
    wait_live(page)
    page.wait_for_function("() => /\\d/.test(document.getElementById('fact-ratio').textContent)")
    check(page)


def test_page_whose_server_is_gone_meets_wcag(page: Page, server: subprocess.Popen[str]) -> None:
    """What veils the video says so readably."""
    server.kill()
    page.wait_for_selector("body[data-state=reconnecting]", timeout=60_000)
    check(page)
