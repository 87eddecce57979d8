"""How often the teachable mode rehearses, with a network that is told of and does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import cast

import torch

from partime_async.frame import Result
from partime_async.serve.demo import TeachableService
from partime_async.serve.demo.engine import Engine
from partime_async.serve.demo.lessons import Taught, TeachableShow
from partime_async.serve.demo.networks import CLASSES, HEIGHT, WIDTH

PICTURE = torch.zeros(1, 3, HEIGHT, WIDTH)


class Heard:
    """Stands in for the engine and its pipeline, and counts what is to be learned."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.lessons = 0
        self.generation = self

    @contextmanager
    def used(self) -> Iterator[Heard]:
        """Be the pipeline."""
        yield self

    async def process(self, value: torch.Tensor, target: object = None) -> object:
        """Take one picture."""
        self.lessons += target is not None
        await asyncio.sleep(0)
        return SimpleNamespace(output=torch.zeros(1, CLASSES, 9, 12))


async def lessons_after(pictures: int, *, label: int | None, is_frozen: bool = False) -> int:
    """Return how many rehearsals follow so many pictures that came all at once, as on a machine that was held up."""
    service, heard = TeachableService(), Heard()
    service.engine = cast(Engine, heard)
    service.lesson_of(0)
    service.memory.keep(0, PICTURE)
    heard.is_frozen = is_frozen
    show = cast(TeachableShow, SimpleNamespace(shares=torch.zeros(CLASSES).numpy()))
    for _ in range(pictures):
        service.seen(show, Taught(PICTURE, label=label), cast(Result, SimpleNamespace(loss=None)), None)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await service.work()
    return heard.lessons


async def test_every_lesson_has_its_rehearsal_however_late() -> None:
    """A machine that is too slow to rehearse between two lessons makes up for it, up to a bound."""
    assert 20 <= await lessons_after(20, label=0) <= 21
    assert await lessons_after(1000, label=0) < 100


async def test_pictures_that_nobody_teaches_with_owe_nothing() -> None:
    """However many come at once, they bring one rehearsal."""
    assert await lessons_after(20, label=None) == 1


async def test_frozen_network_rehearses_nothing() -> None:
    """Nor does what waits for it spin."""
    assert await lessons_after(20, label=0, is_frozen=True) == 0
