"""How the stages of a run learn together: their lessons, the labels, and what came of both."""

from __future__ import annotations

from collections.abc import Callable

from partime_async.assembly import Assembly, Part
from partime_async.errors import ConfigurationError, NonFiniteError, StageError
from partime_async.flight import Frame
from partime_async.frame import Value, check_target
from partime_async.labels import LabelBook
from partime_async.learning import Learner
from partime_async.lesson import GradientLink, Lesson, gradient_link
from partime_async.overflow import Learn
from partime_async.statistics import TeachingStatistics


class Teaching:
    """The learning side of a run; without a learner it has nothing to do.

    Args:
        assembly: The parts, with their learners.
        stop: Called on the event loop with an error that learning cannot go on after.

    Attributes:
        lessons: One for each stage; empty without a learner.
    """

    def __init__(self, assembly: Assembly, stop: Callable[[BaseException], None]) -> None:
        learner = assembly.learner
        self._assembly = assembly
        self._stop = stop
        self._labels = None if learner is None or learner.unsupervised else LabelBook(learner.label_delay)
        self._is_labelled_late = learner is not None and learner.label_delay > 0
        self._measures_alone = learner is not None and learner.unsupervised and bool(learner.metrics)
        self.lessons = [] if learner is None else self._build_lessons(learner)
        if assembly.skip is not None:
            assembly.skip.on_error = stop

    @property
    def reach(self) -> int:
        """How many frames after a lesson's own the last of the stages learns from it."""
        return max((lesson.reach for lesson in self.lessons), default=0)

    def check(self, learn: Learn) -> None:
        """Refuse a feed's wish for learning that cannot be.

        Raises:
            ConfigurationError: Targets are to be withheld, and there is no use for them.
        """
        if learn is Learn.SPARE and self._labels is None:
            raise ConfigurationError(
                "learn is 'spare', and the pipeline does not learn, or its learner is unsupervised and learns from "
                "every frame. Pass a Learner whose loss takes a target, or leave `learn` out."
            )

    def admit(self, frame: Frame, *, has_time: bool) -> None:
        """Note a frame, with its number, and give it what its event learns from.

        Args:
            frame: Has its number.
            has_time: Whether the stages have time to learn at its event.
        """
        if self._labels is not None:
            target, frame.is_lesson = self._labels.admit(frame.index, frame.target, has_time=has_time)
            # Its own target may still come.
            frame.may_be_lesson = frame.is_lesson or self._is_labelled_late
            # The loss is measured all the same, as long as that does not mean to learn from it.
            frame.lesson_target = target if frame.is_lesson or not self._is_labelled_late else None
            return
        frame.is_lesson = frame.may_be_lesson = bool(self.lessons)
        if self._measures_alone:
            frame.lesson_target = frame.target

    def label(self, index: int, target: Value) -> None:
        """Take a late target; see `Pipeline.label`."""
        if self._labels is None:
            raise ConfigurationError(
                "the pipeline has no use for labels: it does not learn, or its learner is unsupervised. "
                "Pass a Learner whose loss takes a target."
            )
        check_target(target)
        self._labels.label(index, target)

    def end(self) -> None:
        """Discard and count the gradients that are still on their way; when nothing is enqueued any more."""
        for lesson in self.lessons:
            lesson.end()

    def statistics(self) -> TeachingStatistics | None:
        """Return what was taught, and how well it was known before; None without a learner."""
        if not self.lessons:
            return None
        loss, metrics = self.lessons[-1].learner.examiner.statistics()
        skip = self._assembly.skip
        return TeachingStatistics(
            labels=None if self._labels is None else self._labels.statistics(),
            loss=loss,
            metrics=metrics,
            skip=None if skip is None else skip.statistics(),
        )

    def _build_lessons(self, learner: Learner) -> list[Lesson]:
        parts = self._assembly.parts
        links = [gradient_link(learner.rule.lag) for _ in parts[1:]]
        incoming: list[GradientLink | None] = [*links, None]
        outgoing: list[GradientLink | None] = [None, *links]
        return [
            self._lesson(part, learner, taken, given)
            for part, taken, given in zip(parts, incoming, outgoing, strict=True)
        ]

    def _lesson(
        self, part: Part, learner: Learner, incoming: GradientLink | None, outgoing: GradientLink | None
    ) -> Lesson:
        assert part.learner is not None

        def stop(error: BaseException, index: int) -> None:
            is_policy = isinstance(error, NonFiniteError)
            self._stop(error if is_policy else StageError(part.number, part.layers, index, error))

        return Lesson(
            part.learner,
            stream=part.stream,
            rule=learner.rule,
            reach=learner.rule.delay(part.number, len(self._assembly.parts)),
            incoming=incoming,
            outgoing=outgoing,
            on_error=stop,
            recovery=part.recovery,
            skip=self._assembly.skip if part.number == 0 else None,
        )
