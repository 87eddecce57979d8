"""The demo's two services with real WebRTC peers: what they show, tell and take orders for."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import torch
from safetensors.torch import save

from partime_async.serve.demo import PredictService, TeachableService
from partime_async.serve.demo.pictures import PANEL
from partime_async.serve.demo.transfer import PIECE_BYTES
from partime_async.webrtc import WebRTCFrames, webrtc_frames
from tests.serve.visitors import PATIENCE_S, Caller, Rig, serving


async def order(caller: Caller, do: str, **details: object) -> None:
    """Send an order, which must go out."""
    assert caller.control.send_json({"do": do, **details})


async def words(caller: Caller, kind: str, **wanted: object) -> Mapping[str, object]:
    """Return the next control message of a type in which all these are so."""
    while True:
        said = await caller.said()
        assert said["type"] != "error" or kind == "error", said
        if said["type"] == kind and all(said.get(name) == value for name, value in wanted.items()):
            return said


async def figures(caller: Caller, **least: float) -> Mapping[str, object]:
    """Return the first telemetry in which all these numbers are at least that large."""
    async with asyncio.timeout(3 * PATIENCE_S):
        while True:
            told = await caller.told()
            if all(isinstance(number := told[name], int | float) and number >= least[name] for name in least):
                return told


async def taught(caller: Caller, label: int, frames: int) -> Mapping[str, object]:
    """Hold a button until so many more frames were taught."""
    before = _counts(await caller.told())[label]
    await order(caller, "teach", **{"class": label})
    async with asyncio.timeout(3 * PATIENCE_S):
        while _counts(told := await caller.told())[label] < before + frames:
            pass
    await order(caller, "release")
    return told


async def _delivered(service: TeachableService, caller: Caller, more: int) -> Mapping[str, object]:
    """Return the telemetry after the network has seen so many more pictures, rehearsed ones among them."""
    pipeline = service.engine.generation.pipeline
    enough = pipeline.statistics().frames.delivered + more
    async with asyncio.timeout(3 * PATIENCE_S):
        while pipeline.statistics().frames.delivered < enough:
            await caller.told()
        return await caller.told()


def _counts(told: Mapping[str, object]) -> list[int]:
    counts = told["n"]
    assert isinstance(counts, list)
    return counts


@asynccontextmanager
async def video_of(caller: Caller) -> AsyncIterator[WebRTCFrames]:
    """Give the video that comes back."""
    async with asyncio.timeout(PATIENCE_S):
        track = await caller.peer.video
    async with webrtc_frames(track) as frames:
        yield frames


@asynccontextmanager
async def watching(rig: Rig, source: str = "scene") -> AsyncIterator[Caller]:
    """Be a browser that watches something."""
    async with rig.call() as caller:
        await order(caller, "watch", source=source)
        yield caller


async def test_teachable_service_taught_two_looks_tells_them_apart_before_it_learns_more() -> None:
    """Of frames of the next pass, nearly all are right before anything is learned from them; little is forgotten."""
    service = TeachableService()
    async with serving(service) as rig, watching(rig) as caller:
        await words(caller, "state", classes=["A", "B", "C", *[None] * 6])
        for look in (0, 1):
            await order(caller, "look", look=look)
            await words(caller, "state", look=look)
            await taught(caller, look, 80)
        right = 0
        for look in (0, 1):
            await order(caller, "look", look=look)
            await words(caller, "state", look=look)
            # What was on its way shows the look before; counted in pictures: a busy machine has few of them a second.
            await _delivered(service, caller, 20)
            for _ in range(7):
                told = await _delivered(service, caller, 2)
                shares = told["p"]
                right += isinstance(shares, list) and shares[look] > 50
        assert right >= 13
        async with asyncio.timeout(PATIENCE_S):
            while None in (kept := (await caller.told())["keep"])[:2]:  # type: ignore[index]
                pass
        assert isinstance(kept, list)
        assert min(kept[:2]) >= 75
        assert len(json.dumps(await caller.told())) <= 1024  # in one packet


async def test_teachable_service_shows_the_scene_and_the_pictures_it_keeps() -> None:
    """The video comes back in the scene's size, and pictures kept for the examination are sent once taught."""
    async with serving(TeachableService()) as rig, watching(rig) as caller, video_of(caller) as frames:
        shown = await anext(frames)
        assert shown.image is not None
        assert shown.image.shape == (240, 320, 3)
        await taught(caller, 2 - 1, 20)
        album = await words(caller, "album")
        assert album["class"] == 1
        pictures = album["pictures"]
        assert isinstance(pictures, list)
        assert len(base64.b64decode(pictures[0])) == 32 * 24 * 3


async def test_teachable_service_learns_from_a_camera() -> None:
    """A browser's own camera is taught from likewise, and its video comes back."""
    async with serving(TeachableService()) as rig, watching(rig, "camera") as caller, caller.filming() as frames:
        await taught(caller, 0, 10)
        shown = await anext(frames)
        assert shown.image is not None
        assert shown.image.shape == (240, 320, 3)


async def test_teachable_service_left_while_a_button_is_held_lets_go_of_it() -> None:
    """A browser that goes away with a button held teaches nobody any more; another one's scene goes on."""
    service = TeachableService()
    async with serving(service) as rig, watching(rig) as stays:
        async with watching(rig) as goes:
            await order(goes, "teach", **{"class": 0})
            await figures(stays, held=0)
        await words(stays, "state", visitors=1)
        async with asyncio.timeout(PATIENCE_S):
            while (await stays.told())["held"] is not None:
                pass


async def test_teachable_service_watched_elsewhere_while_a_button_is_held_lets_go_of_it() -> None:
    """A browser that goes over to its camera with a button held does not go on teaching the scene of the others."""
    async with serving(TeachableService()) as rig, watching(rig) as stays, watching(rig) as goes:
        await order(goes, "teach", **{"class": 1})
        await figures(stays, held=1)
        await order(goes, "watch", source="camera")
        async with asyncio.timeout(PATIENCE_S):
            while (await stays.told())["held"] is not None:
                pass


async def test_teachable_service_adds_names_and_removes_classes_for_all() -> None:
    """Classes are added, renamed and removed, and every browser hears of it; names are cut and cleaned."""
    async with serving(TeachableService()) as rig, watching(rig) as one, watching(rig) as other:
        await order(one, "add")
        await words(other, "state", classes=["A", "B", "C", "D", *[None] * 5])
        await order(one, "rename", **{"class": 3, "name": "  My\x00 cat " + "x" * 90})
        await words(other, "state", classes=["A", "B", "C", "My cat xxxxxxxxxxxxxxxxx", *[None] * 5])
        await taught(one, 3, 8)
        await order(other, "remove", **{"class": 3})
        await words(one, "state", classes=["A", "B", "C", *[None] * 6])
        async with asyncio.timeout(PATIENCE_S):
            while _counts(await one.told())[3]:
                pass


async def test_teachable_service_refuses_orders_that_cannot_be_in_words() -> None:
    """Orders that do not exist, or that name what there is not, are answered with an error, and all goes on."""
    async with serving(TeachableService()) as rig, watching(rig) as caller:
        for wrong in (
            {"do": "dance"},
            {"do": "teach", "class": 5},
            {"do": "teach", "class": "A"},
            {"do": "look", "look": 17},
            {"do": "rule", "rule": "hebb"},
            {"do": "back"},
            {"do": "download", "offset": 99},
            {"do": "upload", "offset": 0, "total": 5, "data": "!"},
        ):
            assert caller.control.send_json(wrong)
            await words(caller, "error")
        await order(caller, "freeze")
        await words(caller, "state", frozen=True)
        await order(caller, "teach", **{"class": 0})
        assert "frozen" in str((await words(caller, "error"))["error"])


async def test_teachable_service_goes_back_to_a_snapshot_with_its_pictures() -> None:
    """Starting over forgets everything; going back brings weights, counts and kept pictures again."""
    async with serving(TeachableService()) as rig, watching(rig) as caller:
        await taught(caller, 0, 20)
        await order(caller, "snapshot")
        await words(caller, "state", snapshot=True)
        await order(caller, "reset")
        async with asyncio.timeout(PATIENCE_S):
            while _counts(await caller.told())[0]:
                pass
        await order(caller, "back")
        async with asyncio.timeout(PATIENCE_S):
            while _counts(await caller.told())[0] < 20:
                pass


async def fetched(caller: Caller) -> bytes:
    """Fetch a file of weights as the page does."""
    data, total = b"", 1
    while len(data) < total:
        await order(caller, "download", offset=len(data))
        piece = await words(caller, "weights", offset=len(data))
        assert isinstance(piece["total"], int)
        total = piece["total"]
        data += base64.b64decode(str(piece["data"]))
    return data


async def sent(caller: Caller, data: bytes) -> None:
    """Send a file of weights as the page does; what is said to the last piece is not waited for."""
    for start in range(0, len(data), PIECE_BYTES):
        part = base64.b64encode(data[start : start + PIECE_BYTES]).decode()
        await order(caller, "upload", offset=start, total=len(data), data=part)
        if start + PIECE_BYTES < len(data):
            await words(caller, "upload", received=start + PIECE_BYTES)


async def test_demo_services_send_and_take_weights_with_their_classes() -> None:
    """A file brings weights, names and which classes were taught into another demo; its own pictures are forgotten."""
    async with serving(TeachableService()) as rig, watching(rig) as caller:
        await order(caller, "rename", **{"class": 0, "name": "Cup"})
        for label in (0, 2):
            await taught(caller, label, 10)
        data = await fetched(caller)
    service = TeachableService()
    async with serving(service) as rig, watching(rig) as caller:
        await taught(caller, 1, 10)
        await sent(caller, data)
        assert (await words(caller, "upload")).get("done") is True
        await words(caller, "state", classes=["Cup", "B", "C", *[None] * 6])
        async with asyncio.timeout(PATIENCE_S):
            while (told := await caller.told())["on"] != [0, 2]:
                pass
        assert _counts(told) == [0] * 9
        assert not any(drawer.rehearsed for drawer in service.memory.drawers)


async def test_demo_service_sent_a_file_that_is_not_its_own_keeps_what_it_has() -> None:
    """A file of the other mode, or none at all, is refused in words that name no path of the server's."""
    async with serving(PredictService()) as rig, watching(rig) as caller:
        theirs = await fetched(caller)
    async with serving(TeachableService()) as rig, watching(rig) as caller:
        await taught(caller, 1, 10)
        for data, why in (
            (theirs, "mode 'predict'"),
            (save({"x": torch.ones(3)}), "the file: "),
            (b"no", "the file: "),
        ):
            await sent(caller, data)
            said = str((await words(caller, "error"))["error"])
            assert why in said
            assert "safetensors" not in said.partition(":")[0]
        assert _counts(await caller.told())[1] >= 10


async def test_teachable_service_names_a_new_class_after_its_key() -> None:
    """The fourth class is D, whatever the others are called, unless another one is called so."""
    async with serving(TeachableService()) as rig, watching(rig) as caller:
        await order(caller, "rename", **{"class": 0, "name": "Cup"})
        await order(caller, "rename", **{"class": 1, "name": "E"})
        await order(caller, "add")
        await words(caller, "state", classes=["Cup", "E", "C", "D", *[None] * 5])
        await order(caller, "add")
        await words(caller, "state", classes=["Cup", "E", "C", "D", "A", *[None] * 4])


async def test_predict_service_learns_to_do_better_than_the_guess() -> None:
    """Its error falls below that of "nothing changes", and three pictures come back side by side."""
    async with serving(PredictService()) as rig, watching(rig) as caller, video_of(caller) as frames:
        shown = await anext(frames)
        assert shown.image is not None
        assert shown.image.shape == (PANEL[1], 3 * PANEL[0], 3)
        async with asyncio.timeout(3 * PATIENCE_S):
            while True:
                told = await caller.told()
                loss, guess = told["loss"], told["guess"]
                if isinstance(loss, float) and isinstance(guess, float) and loss < 0.8 * guess:
                    break
        await order(caller, "stranger")
        async with asyncio.timeout(PATIENCE_S):
            while not (told["guest"] and told["alarm"]):
                told = await caller.told()


async def test_predict_service_changing_its_rule_goes_on_showing() -> None:
    """While another rule takes over, pictures keep coming, each newer than the one before."""
    async with serving(PredictService()) as rig, watching(rig) as caller, video_of(caller) as frames:
        await anext(frames)
        await order(caller, "rule", rule="replay")
        changed = asyncio.create_task(words(caller, "state", rule="replay"))
        positions: list[float] = []
        async with asyncio.timeout(PATIENCE_S):
            while not changed.done() or len(positions) < 20:
                shown = await anext(frames)
                assert shown.position_s is not None
                positions.append(shown.position_s)
        assert all(after > before for before, after in itertools.pairwise(positions))
        told = await figures(caller, **{"in": 5.0})
        assert told["ver"] is not None


async def test_demo_service_asked_by_a_program_sends_it_away() -> None:
    """A program that comes over a WebSocket is told that the demo is for browsers."""
    async with serving(TeachableService()) as rig, rig.stream() as stream:
        assert "browsers" in str((await stream.words("error"))["error"])
    await asyncio.sleep(0)


async def test_demo_service_watched_by_nobody_lets_the_network_rest() -> None:
    """When the last browser has gone, the scene stops, and no frame is learned from."""
    service = TeachableService()
    async with serving(service) as rig:
        async with watching(rig) as caller:
            await figures(caller, out=5.0)
        await rig.empty()
        await rig.until(lambda: not service.visitors)
        before = service.engine.generation.pipeline.statistics().frames.offered
        await asyncio.sleep(0.2)
        assert service.engine.generation.pipeline.statistics().frames.offered <= before + 1
