"""Take the pictures of the demo that the README shows, in a headless Chromium, with the moving scene.

Run from the repository's root:  python -m docs.screenshots
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.serve.demo.browser import chromium, demo_server, wait_live

IMAGES = Path(__file__).with_name("images")
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
HELD_MS = 4500


def main() -> None:
    """Teach three looks of the scene, look at the forecast, and keep what is seen."""
    IMAGES.mkdir(exist_ok=True)
    with demo_server() as (url, _), sync_playwright() as playwright, chromium(playwright) as browser:
        page = browser.new_page(viewport=DESKTOP, color_scheme="dark")  # type: ignore[arg-type]
        page.goto(url)
        wait_live(page)
        _teach(page)
        page.screenshot(path=IMAGES / "demo-teach.png", full_page=True)
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        page.emulate_media(color_scheme="light")
        page.wait_for_timeout(1000)
        page.screenshot(path=IMAGES / "demo-phone.png")
        page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
        page.emulate_media(color_scheme="dark")
        page.click("#mode-predict")
        wait_live(page)
        page.wait_for_timeout(14_000)
        page.click("#stranger")
        page.wait_for_timeout(2200)
        page.screenshot(path=IMAGES / "demo-predict.png", full_page=True)


def _teach(page: Page) -> None:
    for label, name in enumerate(("Dusk", "Ember", "Meadow")):
        field = page.locator(f'.class[data-label="{label}"] .class-name')
        field.fill(name)
        field.press("Enter")
        page.locator(".look").nth(label).click()
        page.wait_for_timeout(400)
        page.keyboard.down(str(label + 1))
        page.wait_for_timeout(HELD_MS)
        page.keyboard.up(str(label + 1))
    page.wait_for_timeout(9000)  # all that was kept has been asked about by then
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_timeout(2000)


if __name__ == "__main__":
    main()
