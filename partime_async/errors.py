"""Every error of the library, named after whose fault it is.

`ConfigurationError` and its kin: what the caller asked for cannot be. `FrameError`: one frame is not what the pipeline
takes. `Closed` and `Full`: the caller used something at the wrong time. `StageError`, `SourceError`: the network or the
source broke. Each keeps its data in attributes and says in its last sentence what to do.
"""

from __future__ import annotations


class PartimeError(Exception):
    """Root of all errors raised by this library."""


class PartimeWarning(UserWarning):
    """Advice that the library gives, each at most once in a run: what it measured, and what would do better."""


class ConfigurationError(PartimeError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class PartitionError(ConfigurationError):
    """A module that cannot be cut as asked."""


class DeviceError(PartimeError):
    """A device that does not exist here or cannot do what was asked."""


class MissingDependencyError(PartimeError, ImportError):
    """An optional package is not installed.

    Attributes:
        package: The package that could not be imported.
        extra: The extra of this library that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package!r} is not installed. Install it with: pip install 'partime-async[{extra}]'")


class FrameError(PartimeError, ValueError):
    """A frame, or its target, that the pipeline does not take; it was refused where it entered."""


class LabelError(PartimeError, ValueError):
    """A target for a frame that does not exist, or that was learned from already.

    Attributes:
        index: The frame it was for.
        latest: The newest frame admitted so far.
        delay: How many frames later than its frame a target may come.
    """

    def __init__(self, index: int, latest: int, delay: int) -> None:
        self.index = index
        self.latest = latest
        self.delay = delay
        if not 0 <= index <= latest:
            what = f"no such frame was admitted: the newest is {latest}. Use the index of a result."
        elif not delay:
            what = (
                "the learner has no label_delay, so a target comes with its frame. Pass it to put() or process(), or "
                "make a Learner with a label_delay."
            )
        else:
            what = (
                f"frame {latest} was admitted meanwhile, and with a label_delay of {delay} a target has to come before "
                f"frame {index + delay} is. Make a Learner with a larger label_delay: it has to cover the frames that "
                "are in flight, too."
            )
        super().__init__(f"frame {index} cannot be labelled: {what}")


class FeedClosed(PartimeError):
    """A frame was offered to a feed that accepts no more."""


class FeedFull(PartimeError):
    """A frame was refused because the feed is full and may not wait.

    Attributes:
        capacity: How many frames may wait in the feed.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        super().__init__(
            f"the feed is full: {capacity} frame(s) wait already. "
            "Await put() to be held back, or choose an overflow policy that drops."
        )


class FrameDropped(PartimeError):
    """A frame whose result was awaited was dropped instead.

    Attributes:
        cause: Why, a value of `partime_async.DropCause`.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"the frame was dropped before it had a result: {cause}.")


class PipelineNotRunning(PartimeError):
    """The pipeline was used outside its `async with` block."""


class StageError(PartimeError):
    """A stage raised while it worked on one frame; the original exception is the `__cause__`.

    Attributes:
        stage: Number of the stage, from 0.
        layers: Names of the stage's first and last layer.
        index: Admission number of the frame, or None for work that belongs to no frame.
    """

    def __init__(self, stage: int, layers: tuple[str, str], index: int | None, cause: BaseException) -> None:
        self.stage = stage
        self.layers = layers
        self.index = index
        of_frame = "" if index is None else f" on frame {index}"
        super().__init__(
            f"stage {stage} (layers {layers[0]} to {layers[1]}) failed{of_frame}: {type(cause).__name__}: {cause}"
        )
        self.__cause__ = cause


class NonFiniteError(PartimeError, ArithmeticError):
    """A loss or gradient is not finite, and the learner's policy is to stop."""


class CheckpointError(PartimeError, ValueError):
    """A checkpoint that cannot be written or read, or one or a snapshot that is of another network or learner.

    Attributes:
        path: The file; ``the snapshot`` if it was none.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


class WorkAborted(PartimeError):
    """Work was enqueued on a device stream that was aborted before it came to it."""


class DeadlineExceeded(PartimeError, TimeoutError):
    """Closing took longer than its deadline.

    Attributes:
        deadline_s: The deadline in seconds.
    """

    def __init__(self, what: str, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        super().__init__(f"{what} within {deadline_s:g} s.")


class SourceError(PartimeError):
    """A source that cannot be opened or read."""


class SinkError(PartimeError):
    """A sink that cannot be opened or written."""
