"""`open_source`: sources by name."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import partime_async.sources
from partime_async.errors import ConfigurationError, MissingDependencyError, SourceError
from partime_async.frame import SourceFrame
from partime_async.sources import Scene, UserSource, VideoFile, open_source
from tests.sources.clips import record

FACTORIES = '''
"""Sources that a user might write."""

class Closing:
    frame_rate = 12.5
    frame_count = 3
    is_closed = False
    def __iter__(self): return iter([1, 2, 3])
    def describe(self): return "three numbers"
    def close(self): self.is_closed = True

def listed(max_frames=2): return list(range(max_frames))
def generated(): yield from (1, 2)
async def streamed():
    for index in range(3):
        yield index
def closing(): return Closing()
def number(): return 7
constant = 7
'''


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a user's module on the path, and one that needs what is not there."""
    (tmp_path / "my_sources.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("my_sources", "my_broken"):
        sys.modules.pop(name, None)


def test_open_source_of_a_path_opens_the_video(tmp_path: Path) -> None:
    """A path gives a `VideoFile` with the options that were given."""
    path = record(tmp_path / "a:b.mp4")
    source = open_source(str(path), size=(32, 16), max_frames=4, start_s=0.04, loop=True, keep_image=False)
    assert isinstance(source, VideoFile)
    frames = list(source)
    assert len(frames) == 4
    assert frames[0].image is None
    assert frames[0].position_s == pytest.approx(0.04)


def test_open_source_of_scene_gives_the_scene() -> None:
    """`scene` gives a `Scene` with the options that were given."""
    source = open_source("scene", size=(16, 24), max_frames=3, seed=5, frame_rate=10.0)
    assert isinstance(source, Scene)
    images = [frame.image for frame in source if frame.image is not None]
    assert len(images) == 3
    assert np.array_equal(images[2], Scene(size=(16, 24), seed=5, frame_rate=10.0).image(2))


@pytest.mark.parametrize(("spec", "device"), [("camera:97", "/dev/video97"), ("camera:/dev/nothing", "/dev/nothing")])
@pytest.mark.skipif(sys.platform != "linux", reason="cameras have other names elsewhere")
def test_open_source_of_a_camera_opens_the_device(spec: str, device: str) -> None:
    """`camera:N` and `camera:PATH` ask for that device."""
    with pytest.raises(SourceError, match=f"cannot open camera '{device}'"):
        open_source(spec, realtime=True)


def read(source: UserSource) -> list[object]:
    """Return the frames of a source, read by a loop of its own; opening it blocks, which no loop may do."""

    async def frames() -> list[object]:
        iterator = source.__aiter__()
        taken = [frame async for frame in iterator]
        await iterator.aclose()
        return taken

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(frames())


def test_open_source_of_a_callable_gives_what_it_makes() -> None:
    """`module:callable` imports, calls with the options given, and adapts what comes to `async for`."""
    source = open_source("my_sources:listed", max_frames=4)
    assert isinstance(source, UserSource)
    assert read(source) == [0, 1, 2, 3]
    assert (source.frame_count, source.frame_rate) == (4, None)
    assert source.describe() == "my_sources:listed: list"


@pytest.mark.parametrize(("name", "expected"), [("generated", [1, 2]), ("streamed", [0, 1, 2])])
def test_open_source_of_any_generator_iterates_it(name: str, expected: list[int]) -> None:
    """Generators and asynchronous generators are sources too."""
    with open_source(f"my_sources:{name}") as source:
        assert isinstance(source, UserSource)
        assert source.frame_count is None
        assert read(source) == expected


def test_open_source_of_a_source_object_uses_what_it_knows() -> None:
    """A user's object is asked for its rate, count and description, and is closed."""
    source = open_source("my_sources:closing")
    assert isinstance(source, UserSource)
    assert (source.frame_rate, source.frame_count) == (12.5, 3)
    assert source.describe() == "my_sources:closing: three numbers"
    assert read(source) == [1, 2, 3]
    source.close()
    assert source._frames.is_closed  # type: ignore[union-attr]


@pytest.mark.parametrize("spec", ["nothing", "no_module:thing", "my_sources:nothing"])
def test_open_source_of_an_unknown_name_says_what_is_possible(spec: str) -> None:
    """A name that means nothing is an error that lists what would."""
    with pytest.raises(SourceError, match=f"there is no source '{spec}'.*(path of a video file|Check the name)"):
        open_source(spec)


def test_open_source_of_a_path_that_is_absent_names_it() -> None:
    """Something that looks like a path is reported as one."""
    with pytest.raises(SourceError, match=r"cannot read video clips/a\.mp4: No such file"):
        open_source("clips/a.mp4")


def test_open_source_of_something_unfit_says_why() -> None:
    """Things that are not callable, or make no source, or refuse the options, are told apart."""
    with pytest.raises(SourceError, match="is a int, not a callable"):
        open_source("my_sources:constant")
    with pytest.raises(ConfigurationError, match="gave a int, which is no source"):
        open_source("my_sources:number")
    with pytest.raises(ConfigurationError, match="cannot be called with seed"):
        open_source("my_sources:listed", seed=3)


def test_open_source_of_a_callable_made_in_c_calls_it() -> None:
    """A callable that does not say what it takes is simply called."""
    source = open_source("builtins:zip")
    assert isinstance(source, UserSource)
    assert read(source) == []


def test_open_source_of_a_module_that_fails_to_import_passes_its_error_on() -> None:
    """What a user's module itself lacks is not mistaken for a wrong name."""
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        open_source("my_broken:thing")


@pytest.mark.parametrize("max_frames", [None, 3])
def test_open_source_of_an_address_gives_what_devices_send(max_frames: int | None) -> None:
    """A URL listens when it is read, and ends with the limit."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    source = open_source(f"tcp://127.0.0.1:{port}?format=csv", max_frames=max_frames, realtime=True)
    assert isinstance(source, UserSource)
    assert (source.frame_rate, source.frame_count) == (None, None)

    async def frames() -> list[object]:
        iterator = aiter(source)
        reading = asyncio.create_task(anext(iterator))
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.01)
        writer.write(b"1,2\n3,4\n5,6\n7,8\n")
        taken = [await reading, await anext(iterator), await anext(iterator)]
        if max_frames is not None:
            with pytest.raises(StopAsyncIteration):
                await anext(iterator)
        await iterator.aclose()
        writer.close()
        return taken

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        taken = runner.run(frames())
    assert [frame.value.tolist() for frame in taken if isinstance(frame, SourceFrame)] == [  # type: ignore[union-attr]
        [[1.0, 2.0]],
        [[3.0, 4.0]],
        [[5.0, 6.0]],
    ]
    source.close()


def test_open_source_of_an_address_to_connect_to_connects() -> None:
    """With ?connect it is the other side that listens."""
    source = open_source("udp://127.0.0.1:9000?connect")
    assert isinstance(source, UserSource)
    assert source.describe() == "what udp://127.0.0.1:9000 sends"


def test_open_source_of_a_broker_does_not_tell_its_password() -> None:
    """What is shown to people has no secret."""
    source = open_source("mqtt://me:secret@broker/sensors/#")
    assert isinstance(source, UserSource)
    assert source.describe() == "devices that send to mqtt://broker:1883/sensors/#"


def test_open_source_of_an_address_with_options_of_pictures_is_refused() -> None:
    """A socket has no size, and a wrong address says what is right; neither tells a password."""
    with pytest.raises(ConfigurationError, match=r"'mqtt' has no option size\. It takes max_frames, realtime"):
        open_source("mqtt://me:secret@broker/a", size=(32, 32))
    with pytest.raises(ConfigurationError, match="lacks a host or a port"):
        open_source("tcp://127.0.0.1")
    with pytest.raises(ConfigurationError, match="max_frames is 0"):
        open_source("tcp://127.0.0.1:9000", max_frames=0)


def test_open_source_with_an_option_of_another_kind_is_refused(tmp_path: Path) -> None:
    """No option is silently ignored."""
    with pytest.raises(ConfigurationError, match=r"'scene' has no option loop, start_s\. It takes frame_rate"):
        open_source("scene", loop=True, start_s=1.0)
    with pytest.raises(ConfigurationError, match="'camera' has no option loop"):
        open_source("camera", loop=True)
    with pytest.raises(ConfigurationError, match="has no option seed"):
        open_source(str(record(tmp_path / "a.mp4")), seed=1)


def test_sources_without_pyav_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs PyAV fails without it, with the command that brings it."""
    for name in ("libav", "video", "camera"):
        monkeypatch.delitem(sys.modules, f"partime_async.sources.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    assert next(iter(partime_async.sources.Scene())).position_s == 0.0
    with pytest.raises(MissingDependencyError, match=r"pip install 'partime-async\[video\]'") as caught:
        importlib.import_module("partime_async.sources.video")
    assert (caught.value.package, caught.value.extra) == ("av", "video")
    for name in ("VideoFile", "Camera"):
        with pytest.raises(MissingDependencyError):
            getattr(partime_async.sources, name)
    with pytest.raises(MissingDependencyError):
        open_source("a.mp4")


def test_sources_have_no_other_names() -> None:
    """The lazy import of two names does not hide a mistyped third."""
    with pytest.raises(AttributeError, match="no attribute 'VideoFiles'"):
        partime_async.sources.VideoFiles  # noqa: B018
