"""Where frames come from: video files, cameras, a synthetic scene, and any iterable.

`VideoFile` and `Camera` need PyAV, so they are imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from partime_async.frame import SourceFrame
from partime_async.iteration import AsyncFrames, ThreadedSource, aiter_frames
from partime_async.picture import Image
from partime_async.sources.base import BlockingSource, Source, SourcePass
from partime_async.sources.open import UserSource, open_source
from partime_async.sources.scene import Scene

if TYPE_CHECKING:
    from partime_async.sources.camera import Camera
    from partime_async.sources.video import VideoFile

__all__ = [
    "AsyncFrames",
    "BlockingSource",
    "Camera",
    "Image",
    "Scene",
    "Source",
    "SourceFrame",
    "SourcePass",
    "ThreadedSource",
    "UserSource",
    "VideoFile",
    "aiter_frames",
    "open_source",
]

_NEED_PYAV = {"Camera": "partime_async.sources.camera", "VideoFile": "partime_async.sources.video"}


def __getattr__(name: str) -> object:
    if name in _NEED_PYAV:
        return getattr(import_module(_NEED_PYAV[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
