"""Every device that the conformance suite runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import torch

from tests.devices.rigs import Rig, rig_for

_HAS_CUDA = torch.cuda.is_available()


@pytest.fixture(
    params=[
        "cpu",
        "simulated",
        pytest.param("double", marks=pytest.mark.skipif(_HAS_CUDA, reason="the device itself is here")),
        pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not _HAS_CUDA, reason="no CUDA device")]),
    ]
)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Provide each device in turn."""
    async with rig_for(request.param) as made:
        yield made
