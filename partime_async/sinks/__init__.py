"""Where results go: into pictures of them, and from there into video files.

`VideoWriter` needs PyAV, so it is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from partime_async.sinks.base import Sink
from partime_async.sinks.render import Layout, Renderer, render
from partime_async.sinks.threaded import ThreadedSink

if TYPE_CHECKING:
    from partime_async.sinks.video import VideoWriter

__all__ = ["Layout", "Renderer", "Sink", "ThreadedSink", "VideoWriter", "render"]

_NEED_PYAV = {"VideoWriter": "partime_async.sinks.video"}


def __getattr__(name: str) -> object:
    if name in _NEED_PYAV:
        return getattr(import_module(_NEED_PYAV[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
