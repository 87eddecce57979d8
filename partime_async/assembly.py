"""From a module to stages that can run: cut it, place each partition on its device, warm it up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from partime_async.clock import Clock
from partime_async.devices import Device, DeviceEvent, DeviceStream, Notifier, Work
from partime_async.errors import ConfigurationError, DeviceError, StageError
from partime_async.frame import Value
from partime_async.learning import Learner, StageLearner
from partime_async.offload import in_thread, to_the_end
from partime_async.partition.layers import LayerChain
from partime_async.partition.plan import Plan
from partime_async.planning import Request, draw_up
from partime_async.stateful import StateKeeper

_OPEN_TIMEOUT_S = 10.0


async def assemble(request: Request, learner: Learner | None) -> Assembly:
    """Copy, cut and plan, off the event loop.

    Raises:
        PartitionError: The module cannot be cut as asked.
    """
    chain, plan, devices = await in_thread(lambda: draw_up(request), name="partime planner")
    return Assembly(chain, plan, devices, request.example, capture=request.capture, learner=learner)


class Part:
    """One partition on its device; `stream` and `work` are there while the assembly is open.

    Attributes:
        number: Of the stage, from 0.
        layers: Names of the first and last layer.
        device: Where it runs.
        module: Its layers; weights and buffers are the assembly's.
        states: What its layers remember of each feed.
        learner: How it learns; None: it does not.
    """

    stream: DeviceStream
    work: Work

    def __init__(self, number: int, layers: tuple[str, str], device: Device, module: nn.Module, threads: int) -> None:
        self.number = number
        self.layers = layers
        self.device = device
        self.module = module
        self.threads = threads
        self.states = StateKeeper(module)
        self.learner: StageLearner | None = None

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of the weights and buffers on the CPU; on the stage's device thread while it runs."""
        return {
            # Extra state, which a module may keep beside its tensors, can be anything.
            name: item.detach().to("cpu", copy=True) if isinstance(item, Tensor) else copy.deepcopy(item)
            for name, item in self.module.state_dict().items()
        }

    def replacement(self, state: Mapping[str, Tensor]) -> Callable[[], None]:
        """Return the action that copies these values in; on the stage's device thread while it runs."""

        def replace() -> None:
            # In place: recordings and learners hold these very tensors.
            self.module.load_state_dict({name: state[name] for name in self.module.state_dict()})
            if self.learner is not None:
                self.learner.weights_replaced()

        return replace


class Assembly:
    """A copy of the module, cut by a plan; opened and closed as often as the pipeline is entered and left."""

    def __init__(
        self,
        chain: LayerChain,
        plan: Plan,
        devices: Sequence[Device],
        example: Value,
        *,
        capture: bool,
        learner: Learner | None,
    ) -> None:
        self.plan = plan
        self.learner = learner
        self.parts: list[Part] = []
        self._chain = chain
        self._example = example
        # A recording has no graph to go back through.
        self._capture = capture and learner is None
        start = 0
        for number, count in enumerate(plan.balance):
            layers = (chain.names[start], chain.names[start + count - 1])
            module = chain.slice(start, start + count)
            self.parts.append(Part(number, layers, devices[number], module, plan.threads[number]))
            start += count

    async def open(self, notifier: Notifier[DeviceEvent], clock: Clock) -> None:
        """Open a stream per part and make the parts ready to run.

        Raises:
            StageError: A partition cannot run on its device; nothing is left open.

        Cancellation: safe; nothing is left open.
        """
        opened: list[DeviceStream] = []
        try:
            for part in self.parts:
                name = f"partime stage {part.number}"
                part.stream = part.device.open_stream(name, notifier=notifier, clock=clock, threads=part.threads)
                opened.append(part.stream)
            await in_thread(self._prepare, name="partime warm-up")
        except BaseException:
            for stream in opened:
                stream.abort()
            await to_the_end(_close(opened, _OPEN_TIMEOUT_S), name="partime closing")
            raise

    async def close(self, timeout_s: float) -> None:
        """Let the streams finish what they have, and end them.

        Raises:
            DeadlineExceeded: A stage runs something that cannot be interrupted.
        """
        try:
            await _close([part.stream for part in self.parts], timeout_s)
        finally:
            for part in self.parts:
                part.states.clear()

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all weights and buffers, with the module's own keys; only while closed."""
        return self.merge([part.snapshot() for part in self.parts])

    def merge(self, snapshots: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the parts' snapshots as one, in the module's own order."""
        merged = {name: tensor for snapshot in snapshots for name, tensor in snapshot.items()}
        return {name: merged[name] for name in self._chain.state_dict()}

    def replacements(self, state: Mapping[str, Tensor]) -> list[Callable[[], None]]:
        """Check a new state and return, for each part, the action that copies it in.

        Raises:
            ConfigurationError: Keys, shapes or dtypes do not fit.
        """
        own = self._chain.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ConfigurationError(
                f"the state does not fit: {len(missing)} key(s) missing {missing[:3]}, {len(unknown)} unknown "
                f"{unknown[:3]}. Pass the state_dict of the module this pipeline was made from."
            )
        for name, item in own.items():
            if isinstance(item, Tensor) and (found := _told(state[name])) != (expected := _told(item)):
                raise ConfigurationError(
                    f"{name} is {found}, expected {expected}. "
                    "Pass the state_dict of the module this pipeline was made from."
                )
        return [part.replacement(state) for part in self.parts]

    def _prepare(self) -> None:
        value = self._example
        for part in self.parts:
            try:
                part.work, value = part.stream.prepare(part.module, value, capture=self._capture)
                if self.learner is not None and part.learner is None:
                    part.learner = StageLearner(self.learner, part.module, part.number, len(self.parts))
            except DeviceError:
                raise
            except Exception as error:
                raise StageError(part.number, part.layers, None, error) from error
        if self._chain.mutates_input:
            # The first layer writes into its input, which is the caller's own frame.
            self.parts[0].work = _on_a_copy(self.parts[0].work)


async def _close(streams: Sequence[DeviceStream], timeout_s: float) -> None:
    outcomes = await asyncio.gather(*(stream.aclose(timeout_s) for stream in streams), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _told(item: object) -> str:
    if not isinstance(item, Tensor):
        return f"of type {type(item).__name__}"
    # A tensor without values cannot be copied in, and nobody would be told before the first stages had others.
    values = " without values, on the meta device" if item.is_meta else ""
    return f"a tensor {tuple(item.shape)} of {str(item.dtype).removeprefix('torch.')}{values}"


def _on_a_copy(work: Work) -> Work:
    def copied(value: Value) -> Value:
        return work(value.clone() if isinstance(value, Tensor) else tuple(tensor.clone() for tensor in value))

    return copied
