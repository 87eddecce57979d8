"""Temporary."""

from partime_async.sources.threaded import aiter_frames as aiter_frames
