"""What breaks inside the demo is told, and harms nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from partime_async.serve.demo import PredictService, TeachableService, predicting_recipe, teachable_recipe
from tests.serve.demo.test_demo_services import order, video_of, watching, words
from tests.serve.visitors import PATIENCE_S, serving


class Treacherous(torch.optim.SGD):
    """An optimiser that breaks at its tenth step."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, lr=0.001)
        self.steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do it, or break."""
        self.steps += 1
        if self.steps >= 10:
            raise RuntimeError("the optimiser broke")
        super().step(closure)


async def test_service_whose_network_breaks_says_so_and_the_other_one_goes_on() -> None:
    """Browsers are told what broke, health says stopped, and the other mode still shows pictures."""
    broken = PredictService(replace(predicting_recipe(), optimizer=Treacherous))
    async with serving({"teach": TeachableService(), "predict": broken}) as rig:
        async with rig.call(service="predict") as caller:
            await order(caller, "watch", source="scene")
            assert "the optimiser broke" in str((await words(caller, "error"))["error"])
        health = json.loads(await rig.text("healthz", status=503))
        assert health["status"] == "stopped"
        async with watching(rig) as other, video_of(other) as frames, asyncio.timeout(PATIENCE_S):
            await anext(frames)


async def test_frames_that_fail_in_the_network_are_left_out() -> None:
    """A picture on which a stage raises is not shown, and the next ones are."""

    class Moody(nn.Module):
        """Raises on every third frame."""

        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, value: Tensor) -> Tensor:
            self.count += 1
            if self.count > 12 and self.count % 3 == 0:
                raise ValueError("not this one")
            return value

    def network() -> nn.Module:
        made = teachable_recipe().network()
        assert isinstance(made, nn.Sequential)
        return nn.Sequential(Moody(), *list(made)[1:])

    recipe = replace(teachable_recipe(), network=network)
    async with serving(TeachableService(recipe)) as rig, watching(rig) as caller, video_of(caller) as frames:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(20):
                await anext(frames)
        told = await caller.told()
        assert told["type"] == "t"
