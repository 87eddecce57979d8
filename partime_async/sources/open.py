"""Sources by name, for the command line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sized
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

from partime_async.errors import ConfigurationError, SourceError
from partime_async.iteration import AsyncFrames, aiter_frames
from partime_async.sources.base import BlockingSource, checked_count
from partime_async.sources.scene import Scene

if TYPE_CHECKING:
    from partime_async.sockets import SocketSource

SOCKET = re.compile(r"(tcps?|udp|unix|wss?|mqtts?)://.*")
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
KNOWN = (
    "a path of a video file, 'camera', 'camera:1', 'camera:/dev/video2', 'scene', 'tcp://127.0.0.1:9000' (or udp, "
    "unix, ws, mqtt, and with TLS tcps, wss, mqtts) for devices that send there, or 'module:callable' for a source of "
    "your own"
)


class SourceOptions(TypedDict, total=False):
    """What `open_source` passes on. Only what is given is; what the kind of source does not know is an error."""

    size: tuple[int, int] | None
    frame_rate: float | None
    max_frames: int | None
    realtime: bool
    loop: bool
    start_s: float
    seed: int
    keep_image: bool


class UserSource:
    """The iterable of a user's factory, with what the command line asks of every source.

    Iterate it with `async for`: blocking iterables are pulled in a thread.

    Args:
        spec: What the user called it.
        frames: What the factory gave.
    """

    def __init__(self, spec: str, frames: AsyncIterable[object] | Iterable[object]) -> None:
        self._spec = spec
        self._frames = frames

    @property
    def frame_rate(self) -> float | None:
        """Frames per second, if the user's object has a `frame_rate`."""
        rate = getattr(self._frames, "frame_rate", None)
        return float(rate) if isinstance(rate, int | float) else None

    @property
    def frame_count(self) -> int | None:
        """How many frames there are, if the user's object has a `frame_count` or a length."""
        count = getattr(self._frames, "frame_count", None)
        if isinstance(count, int):
            return count
        return len(self._frames) if isinstance(self._frames, Sized) else None

    def describe(self) -> str:
        """Say in one line what the source is."""
        describe = getattr(self._frames, "describe", None)
        return f"{self._spec}: {describe() if callable(describe) else type(self._frames).__name__}"

    def __aiter__(self) -> AsyncFrames[object]:
        return aiter_frames(self._frames)

    def close(self) -> None:
        """Close the user's object, if it can be; further calls call it again."""
        # An iterator belongs to the thread or task that pulls it, which closes it.
        close = getattr(self._frames, "close", None)
        if callable(close) and not hasattr(self._frames, "__next__"):
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SocketInput(UserSource):
    """Devices that send to an address, or with ``?connect`` what is sent from there.

    Args:
        frames: What to read; it opens with the first frame that is asked for.
        max_frames: End after so many; None: with the source.
    """

    def __init__(self, frames: SocketSource, max_frames: int | None) -> None:
        super().__init__("", frames)
        self._source, self._max_frames = frames, max_frames

    def describe(self) -> str:
        """Say in one line what the source is, without the password that its address may have."""
        return self._source.describe()

    def __aiter__(self) -> AsyncFrames[object]:
        return aiter_frames(self._source if self._max_frames is None else _first(self._source, self._max_frames))


async def _first(source: SocketSource, count: int) -> AsyncIterator[object]:
    try:
        for _ in range(count):
            try:
                yield await anext(source)
            except StopAsyncIteration:
                return
    finally:
        await source.aclose()


def open_source(spec: str, **options: Unpack[SourceOptions]) -> BlockingSource | UserSource:
    """Open a source by its name. Files and devices are opened at once, which blocks; sockets when they are read.

    Args:
        spec: A path of a video file; ``camera``, ``camera:1`` or ``camera:/dev/video2``; ``scene``; an address that
            devices send to, such as ``tcp://127.0.0.1:9000?format=csv``, or with ``?connect`` one that they send from;
            or ``module:callable``, which is imported and called with the options given.
        **options: Options of the source: `max_frames` and `realtime` of all (what is live knows no other time); `size`
            of pictures; `frame_rate` of a camera or scene; `loop`, `start_s` of a file; `seed` of a scene; `keep_image`
            of a file or camera.

    Raises:
        SourceError: `spec` names nothing, or it cannot be opened; the text says what is possible.
        ConfigurationError: The source has no such option, or does not take its value; the caller's fault.
    """
    kind, _, name = spec.partition(":")
    if spec == "scene":
        return _open_scene(spec, options)
    if kind == "camera":
        return _open_camera(spec, name, options)
    if SOCKET.fullmatch(spec):
        return _open_socket(spec, options)
    if FACTORY.fullmatch(spec) and not Path(spec).exists():
        return _open_factory(spec, options)
    if not Path(spec).suffix and not Path(spec).exists():
        raise SourceError(f"there is no source {spec!r}. Give {KNOWN}.")
    return _open_file(spec, options)


def _open_scene(spec: str, options: SourceOptions) -> Scene:
    _refuse_others(spec, options, {"size", "frame_rate", "max_frames", "realtime", "seed"})
    return Scene(
        size=options.get("size") or (64, 64),
        frame_rate=options.get("frame_rate") or 30.0,
        frames=options.get("max_frames"),
        seed=options.get("seed", 0),
        realtime=options.get("realtime", False),
    )


def _open_camera(spec: str, device: str, options: SourceOptions) -> BlockingSource:
    _refuse_others(spec, options, {"size", "frame_rate", "max_frames", "realtime", "keep_image"})
    from partime_async.sources.camera import Camera

    return Camera(
        device or "0",
        size=options.get("size"),
        frame_rate=options.get("frame_rate"),
        max_frames=options.get("max_frames"),
        keep_image=options.get("keep_image", True),
    )


def _open_socket(spec: str, options: SourceOptions) -> SocketInput:
    _refuse_others(spec.partition(":")[0], options, {"max_frames", "realtime"})
    from partime_async.sockets import connect, listen
    from partime_async.sockets.address import Address

    count = checked_count("max_frames", options.get("max_frames"))
    is_dialled = Address.parse(spec).is_dialled
    return SocketInput(connect(spec) if is_dialled else listen(spec), count)


def _open_file(spec: str, options: SourceOptions) -> BlockingSource:
    _refuse_others(spec, options, {"size", "max_frames", "realtime", "loop", "start_s", "keep_image"})
    from partime_async.sources.video import VideoFile

    return VideoFile(
        spec,
        size=options.get("size"),
        realtime=options.get("realtime", False),
        loop=options.get("loop", False),
        start_s=options.get("start_s", 0.0),
        max_frames=options.get("max_frames"),
        keep_image=options.get("keep_image", True),
    )


def _open_factory(spec: str, options: SourceOptions) -> UserSource:
    factory = _import_factory(spec)
    _check_call(spec, factory, options)
    frames = factory(**options)
    if isinstance(frames, str | bytes) or not isinstance(frames, AsyncIterable | Iterable):
        raise ConfigurationError(
            f"{spec} gave a {type(frames).__name__}, which is no source. Return an iterable or async iterable."
        )
    return UserSource(spec, frames)


def _check_call(spec: str, factory: Callable[..., object], options: SourceOptions) -> None:
    try:
        call = signature(factory)
    except ValueError:  # made in C, and silent about what it takes
        return
    try:
        call.bind(**options)
    except TypeError as error:
        given = ", ".join(sorted(options)) or "no options"
        raise ConfigurationError(
            f"{spec} cannot be called with {given}: {error}. Let it take these options."
        ) from error


def _import_factory(spec: str) -> Callable[..., object]:
    module_name, _, path = spec.partition(":")
    try:
        found: object = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module exists; something that it imports does not
        raise SourceError(f"there is no source {spec!r}: {error}. Give {KNOWN}.") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise SourceError(f"there is no source {spec!r}: {module_name} has no {path}. Check the name.")
        found = getattr(found, part)
    if not callable(found):
        raise SourceError(f"{spec!r} is a {type(found).__name__}, not a callable. Name what makes the source.")
    return found


def _refuse_others(spec: str, options: SourceOptions, known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigurationError(f"{spec!r} has no option {', '.join(unknown)}. It takes {', '.join(sorted(known))}.")
