"""From a module to stages that can run: cut it, place each partition on its device, warm it up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from partime_async.clock import Clock
from partime_async.devices import CpuDevice, Device, DeviceEvent, DeviceStream, Notifier, Work
from partime_async.devices.draws import Draws, drawing_layers
from partime_async.errors import ConfigurationError, DeviceError, StageError
from partime_async.evaluation import Contents, Original, rest_of
from partime_async.frame import Value
from partime_async.learning import Learner, NonFinite, StageLearner
from partime_async.learning.recovery import FaultBook, Recovery
from partime_async.learning.skip import SkipLearner
from partime_async.offload import in_thread, to_the_end
from partime_async.partition.layers import LayerChain
from partime_async.partition.plan import Plan
from partime_async.planning import Request, draw_up
from partime_async.stateful import StateKeeper, stateful_layers

_OPEN_TIMEOUT_S = 10.0


async def assemble(request: Request, learner: Learner | None) -> Assembly:
    """Copy, cut and plan, off the event loop.

    Raises:
        PartitionError: The module cannot be cut as asked.
    """

    def build() -> Assembly:
        chain, plan, devices = draw_up(request)
        original = Original(request.module)
        return Assembly(chain, plan, devices, original, request.example, capture=request.capture, learner=learner)

    return await in_thread(build, name="partime planner")


class Part:
    """One partition on its device; `stream` and `work` are there while the assembly is open.

    Attributes:
        number: Of the stage, from 0.
        layers: Names of the first and last layer.
        device: Where it runs.
        module: Its layers; weights and buffers are the assembly's.
        states: What its layers remember of each feed.
        draws: The random numbers that its layers draw; None: they draw none, or it is not known yet.
        learner: How it learns; None: it does not.
        recovery: Its copies of good weights; None: it has none.
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
        self.draws: Draws | None = None
        self.learner: StageLearner | None = None
        self.recovery: Recovery | None = None
        self._is_known = False

    @property
    def is_recordable(self) -> bool:
        """Whether a recording would be all of it; known once it is prepared."""
        # A recording holds the tensors, but not what a module keeps beside them, and a new state may replace both. And
        # it would draw from PyTorch's own generator.
        return self.draws is None and all(isinstance(item, Tensor) for item in self.module.state_dict().values())

    def prepare(self, example: Value, random_state: Tensor, *, capture: bool) -> Value:
        """Make `work` ready to run, and return an example of what it gives; blocks.

        Args:
            example: Of what it gets; a layer may write into it.
            random_state: Of PyTorch's generator for the CPU; the stage's own random numbers start from it.
            capture: See `DeviceStream.prepare`.
        """
        if not self._is_known:
            # Before the layers are placed: on a GPU, only the stream's own threads run them.
            drawing = drawing_layers(self.module, example)
            self.draws = Draws(self.module, drawing, self.number) if drawing else None
            self._is_known = True
        self.work, output = self.stream.prepare(self.module, example, capture=capture and self.is_recordable)
        if self.draws is not None:
            self.draws.seed(random_state)
            self.work = self.draws.work(self.module)
        return output

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
            if self.recovery is not None:
                self.recovery.replaced()

        return replace

    def contents(self) -> Contents:
        """Return a copy of all values that the layers compute with; where `snapshot` may be called."""
        return Contents(self.snapshot(), rest_of(self.module))


class Assembly:
    """A copy of the module, cut by a plan; opened and closed as often as the pipeline is entered and left.

    Attributes:
        plan: How it is cut.
        learner: How it learns; None: it does not.
        skip: Learns beside it from every N-th frame, while it is open; None: nobody does.
        parts: The partitions, in order.
        frames: How many frames have been through it in the runs that have ended, those of a loaded checkpoint included.
    """

    def __init__(
        self,
        chain: LayerChain,
        plan: Plan,
        devices: Sequence[Device],
        original: Original,
        example: Value,
        *,
        capture: bool,
        learner: Learner | None,
    ) -> None:
        self.plan = plan
        self.learner = learner
        self.skip: SkipLearner | None = None
        self.frames = 0
        self.parts: list[Part] = []
        self._chain = chain
        self._original = original
        restores = learner is not None and learner.non_finite == NonFinite.RESTORE
        self._faults = FaultBook(learner.rule, len(plan.balance)) if learner is not None and restores else None
        self._example = example
        self._capture = capture
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
            ConfigurationError: The learner cannot teach these layers; nothing is left open.

        Cancellation: safe; nothing is left open.
        """
        opened: list[DeviceStream] = []
        try:
            for part in self.parts:
                name = f"partime stage {part.number}"
                part.stream = part.device.open_stream(name, notifier=notifier, clock=clock, threads=part.threads)
                opened.append(part.stream)
            skip_stream: DeviceStream | None = None
            if self.learner is not None and self.learner.compare_to_skip and len(self.parts) > 1:
                skip_stream = CpuDevice().open_stream("partime skip", notifier=notifier, clock=clock)
                opened.append(skip_stream)
            random_state = torch.random.get_rng_state()
            await in_thread(lambda: self._prepare(random_state, skip_stream), name="partime warm-up")
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
            streams = [part.stream for part in self.parts]
            if self.skip is not None:
                self.skip.stream.abort()
                streams.append(self.skip.stream)
            await _close(streams, timeout_s)
        finally:
            for part in self.parts:
                part.states.clear()
                if part.learner is not None:
                    part.learner.examiner.on_loss = None
            self.skip = None

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all weights and buffers, with the module's own keys; only while closed."""
        return self.merge([part.snapshot() for part in self.parts])

    def merge(self, snapshots: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the parts' snapshots as one, in the module's own order."""
        merged = {name: tensor for snapshot in snapshots for name, tensor in snapshot.items()}
        return {name: merged[name] for name in self._chain.state_dict()}

    def copy(self, contents: Sequence[Contents]) -> nn.Module:
        """Return the original module, as it was passed in, with the values of the parts."""
        rest = {name: value for part in contents for name, value in part.rest.items()}
        return self._original.copy(Contents(self.merge([part.state for part in contents]), rest))

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

    def _prepare(self, random_state: Tensor, skip_stream: DeviceStream | None) -> None:
        value = _copied(self._example)
        for part in self.parts:
            try:
                given = _copied(value)
                # A recording for inference has no graph to go back through: a learner makes its own.
                value = part.prepare(value, random_state, capture=self._capture and self.learner is None)
                if self.learner is not None:
                    self._prepare_learner(part, self.learner, given)
            except (ConfigurationError, DeviceError):
                raise
            except Exception as error:
                raise StageError(part.number, part.layers, None, error) from error
        learners = [part.learner for part in self.parts if part.learner is not None]
        if learners and not any(learner.has_weights for learner in learners):
            raise ConfigurationError(
                "the module has no trainable weights, and there is a learner. Set requires_grad on its parameters, or "
                "pass no learner."
            )
        if skip_stream is not None:
            self._prepare_skip(skip_stream, random_state)
        if self._chain.mutates_input:
            # The first layer writes into its input, which is the caller's own frame.
            self.parts[0].work = _on_a_copy(self.parts[0].work)

    def _prepare_learner(self, part: Part, learner: Learner, example: Value) -> None:
        if part.learner is None:
            part.learner = StageLearner(
                learner,
                part.module,
                part.number,
                len(self.parts),
                draws=part.draws,
                writes_input=part.number == 0 and self._chain.mutates_input,
                example=example if self._capture and part.is_recordable else None,
                on_fault=None if self._faults is None else self._faults.note,
            )
            if self._faults is not None:
                part.recovery = Recovery(
                    part.learner,
                    part.module,
                    self._faults,
                    every=learner.snapshot_every,
                    on_restore=part.states.clear,
                )
        part.learner.begin()
        if part.recovery is not None:
            part.recovery.begin()

    def _prepare_skip(self, stream: DeviceStream, random_state: Tensor) -> None:
        assert self.learner is not None
        module = self.copy([part.contents() for part in self.parts])
        if stateful_layers(module):
            raise ConfigurationError(
                "compare_to_skip is set, and the module has layers that remember: on every N-th frame they would "
                "remember something else, and the losses could not be compared. Leave compare_to_skip out."
            )
        drawing = drawing_layers(module, self._example)
        draws = Draws(module, drawing, len(self.parts)) if drawing else None
        if draws is not None:
            draws.seed(random_state)
        skip = self.skip = SkipLearner(self.learner, module, len(self.parts), stream=stream, draws=draws)
        last = self.parts[-1].learner
        assert last is not None

        def compare(frame: int, target: Value | None, loss: float) -> None:
            skip.compare(frame, target, loss, learns=not last.is_frozen)

        last.examiner.on_loss = compare


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
        return work(_copied(value))

    return copied


def _copied(value: Value) -> Value:
    return value.clone() if isinstance(value, Tensor) else tuple(tensor.clone() for tensor in value)
