"""What the tests of the command line share: a user's own module, and the command in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Command, commands

ROOT = Path(__file__).parents[2]

USERS_MODULE = '''
"""A user's sources and networks, found by 'module:name'."""

import asyncio
import sys
import time

import torch
from torch import nn


class Picky(nn.Module):
    def forward(self, frame):
        if frame.max() > 5.0:
            raise ValueError("too bright")
        return frame + 1.0


class Sleepy(nn.Module):
    def forward(self, frame):
        if frame.max() > 0.0:
            time.sleep(30.0)
        return frame


def small():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def picture():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid())


def picky():
    return nn.Sequential(nn.Identity(), Picky(), nn.Identity())


def sleepy():
    return nn.Sequential(nn.Identity(), Sleepy())


def ten():
    return [torch.full((1, 4), float(number)) for number in range(10)]


def nothing():
    return []


def words():
    return ["no", "frames"]


def broken():
    yield from ten()[:3]
    raise OSError("the cable was pulled")


def endless():
    yield torch.zeros(1, 4)
    while True:
        yield torch.ones(1, 4)


async def silent():
    print("waiting", file=sys.stderr, flush=True)
    await asyncio.sleep(3600.0)
    yield torch.zeros(1, 4)


def stuck():
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(3600.0)
    yield torch.zeros(1, 4)


async def sensor():
    for number in range(5):
        await asyncio.sleep(0.0)
        yield torch.full((1, 4), float(number)), torch.zeros(1, 2)
'''


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """Return a folder with the module ``users_own``."""
    (tmp_path / "users_own.py").write_text(USERS_MODULE)
    return tmp_path


@pytest.fixture
def importable(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make ``users_own`` importable in this process."""
    monkeypatch.syspath_prepend(users_folder)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    return users_folder


@pytest.fixture
def command(users_folder: Path) -> Iterator[Command]:
    """Return a function that starts ``partime-async`` with these arguments in the user's folder."""
    with commands(users_folder, columns=100) as start:
        yield start
