"""A headless Chromium with a fake camera, and the demo's server in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright

CHROMIUM = shutil.which("chromium")
READY_S = 60.0

WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
"""What axe-core checks: levels A and AA of WCAG up to 2.2."""

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--allow-loopback-in-peer-connection",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
)


@contextmanager
def chromium(playwright: Playwright, *, camera: Path | None = None, grants_camera: bool = True) -> Iterator[Browser]:
    """Run a browser that can reach nothing but this machine.

    Args:
        playwright: Drives it; there can be one in a process at a time.
        camera: What its camera plays; None: Chromium's own test picture.
        grants_camera: Whether pages get the camera; else they are refused.
    """
    flags = [*_FLAGS]
    if camera is not None:
        flags.append(f"--use-file-for-fake-video-capture={camera}")
    flags.append("--use-fake-ui-for-media-stream" if grants_camera else "--deny-permission-prompts")
    browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def demo_server(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `partime-async demo`, and give its address and its process."""
    command = [sys.executable, "-m", "partime_async", "demo", "--port", "0", "--no-browser", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found is not None, f"the demo said {line!r}"
            yield found[0], process
        finally:
            process.kill()


def wait_live(page: Page) -> None:
    """Wait until the page has its connection."""
    page.wait_for_selector("body[data-state=live]", timeout=20_000)


def number(page: Page, selector: str) -> float | None:
    """Return the number that an element shows; None: it shows none."""
    found = re.search(r"-?[\d.,]+(e-?\d+)?", page.inner_text(selector))
    return None if found is None else float(found[0].replace(",", ""))
