"""A browser in a process of its own: opens pages that measure, and tells what they found.

Run by path, ``python chromium_visit.py CLIP.mjpeg``: for each line of JSON that it reads, the address of a page and for
how long to call, it writes one with what `measure.js` returned, or with an ``error``. It ends with its input.
"""

from __future__ import annotations

import json
import shutil
import sys

from playwright.sync_api import Error, Page, sync_playwright

_PATIENCE_MS = 30_000
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream"),
    *("--use-fake-ui-for-media-stream", "--disable-features=WebRtcHideLocalIpsWithMdns"),
    *("--allow-loopback-in-peer-connection",),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
)


def main(clip: str) -> None:
    """Serve the lines of standard input with one browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            headless=True,
            args=[*_FLAGS, f"--use-file-for-fake-video-capture={clip}"],
        )
        page = browser.new_page(viewport={"width": 360, "height": 280})
        page.set_default_timeout(_PATIENCE_MS)
        print(json.dumps({"version": browser.version}), flush=True)
        for line in sys.stdin:
            print(json.dumps(_visited(page, json.loads(line))), flush=True)
        browser.close()


def _visited(page: Page, order: dict[str, object]) -> object:
    try:
        page.goto(str(order["url"]))
        found = page.evaluate("order => measure(order)", order)
        page.evaluate("hangUp()")
    except Error as error:
        return {"error": error.message}
    return found


if __name__ == "__main__":
    main(sys.argv[1])
