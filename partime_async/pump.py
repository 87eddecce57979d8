"""From a source into a feed: the task behind `Pipeline.stream`."""

from __future__ import annotations

import asyncio

from partime_async.errors import FeedClosed, SourceError
from partime_async.feed import Feed
from partime_async.frame import FrameSpec, SourceFrame
from partime_async.iteration import AsyncFrames
from partime_async.offload import is_being_cancelled


async def pump(items: AsyncFrames[object], feed: Feed, spec: FrameSpec) -> None:
    """Put every item of a source into a feed; close both, the feed with whatever ended the source."""
    error: Exception | None = None
    try:
        async for item in items:
            if isinstance(item, SourceFrame):
                await feed.put(item.value, item.target, captured_at=item.captured_at, context=item)
            else:
                frame, target = spec.unpack(item)
                await feed.put(frame, target, context=item)
    except FeedClosed:
        pass  # the reader has gone: no more is wanted
    except asyncio.CancelledError as raised:
        if is_being_cancelled():
            raise
        error = SourceError("the source was cancelled by its own doing. Let it raise another error, or just end.")
        error.__cause__ = raised
    except Exception as raised:
        error = raised
    finally:
        try:
            await items.aclose()
        except Exception as raised:
            # One client's source is no reason to stop the pipeline: its own reader gets to know.
            error = error or raised
        finally:
            feed.close(error)
