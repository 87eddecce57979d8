"""What cannot be is refused with the value that is wrong and what to do about it, as early as it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from tests.nets import assert_same_bits, called, dense, frames_like, streamed
from tests.partition.nets import Branching, Dictionary, Uncopied

FRAME = torch.ones(1, 6)
Options = Mapping[str, object]


class Pair(NamedTuple):
    """A tuple that a stage would not give on as it is."""

    left: Tensor
    right: Tensor


def _make(module: object = None, example: object = FRAME, **options: object) -> pa.Pipeline:
    return pa.Pipeline(dense() if module is None else module, example, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stages": 0}, "stages is 0.*Pass 1 or more"),
        ({"stages": -2}, "stages is -2"),
        ({"stages": 2.5}, "stages is 2.5"),
        ({"stages": "2"}, "stages is '2'"),
        ({"stages": 3, "balance": [4, 3]}, r"stages is 3 and balance \[4, 3\] has 2 entries.*Pass one"),
        ({"balance": 7}, r"balance is 7.*such as \[3, 2\]"),
        ({"devices": []}, r"devices is \[\].*Pass a list"),
        ({"devices": "cpu"}, "devices is 'cpu'.*Pass a list"),
        ({"devices": ["gpu"]}, "unknown device 'gpu'.*Use 'cpu'"),
        ({"devices": ["cpu:one"]}, "unknown device 'cpu:one'"),
        ({"devices": ["simulated:-5ms"]}, "unknown device 'simulated:-5ms'"),
        ({"devices": ["simulated:5ms", "cpu"]}, "simulated and real devices do not mix.*Use one kind"),
        ({"capacity": 0}, "capacity is 0.*Pass 1 or more"),
        ({"capacity": 1.5}, "capacity is 1.5"),
        ({"capacity": None}, "capacity is None"),
        ({"depth": 0}, "depth is 0.*Pass 1 or more"),
        ({"depth": "deep"}, "depth is 'deep'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'.*Use 'fail_frame' or 'stop'"),
        ({"close_timeout_s": 0}, "close_timeout_s is 0.*Pass more than 0"),
        ({"close_timeout_s": math.nan}, "close_timeout_s is nan"),
        ({"close_timeout_s": "1"}, "close_timeout_s is '1'"),
        ({"module": "net"}, "module is a str.*Pass a torch.nn.Module"),
        ({"module": dense}, "module is a function"),
        ({"example": [1.0]}, "the example is a builtins.list.*Pass a tensor"),
        ({"example": ()}, r"the example is a tuple \(\)"),
        ({"example": (FRAME, None)}, "NoneType.*Pass a tensor"),
        ({"example": FRAME.numpy()}, "torch.from_numpy"),
    ],
)
def test_pipeline_of_impossible_arguments_is_refused_when_it_is_made(options: Options, told: str) -> None:
    """What shows without running the network is refused by the constructor, by name, with the remedy."""
    with pytest.raises(pa.ConfigurationError, match=told) as caught:
        _make(**options)
    assert str(caught.value).endswith("."), "the last sentence is the remedy"


@pytest.mark.parametrize("device", ["cuda:99", "cuda"])
def test_pipeline_on_a_device_that_is_not_here_is_refused_when_it_is_made(device: str) -> None:
    """A device that this machine lacks is named."""
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(pa.DeviceError, match=device.partition(":")[0]):
        _make(devices=[device])


class InPlaceLater(nn.Module):
    """Writes into what it gets."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, doubled in place."""
        return value.mul_(2.0)


def _residual_in_place() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.act = nn.ReLU(inplace=True)
            self.last = nn.Linear(6, 6)

        def forward(self, value: Tensor) -> Tensor:
            early = self.first(value)
            result: Tensor = self.last(self.act(early)) + early
            return result

    return Net()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"module": nn.Sequential(), "stages": 1}, "no layers.*Give it at least one"),
        ({"module": nn.Sequential(nn.Sequential(), nn.Sequential()), "stages": 1}, "no layers"),
        ({"module": nn.Module(), "stages": 1}, "no forward.*Give an nn.Sequential"),
        ({"module": nn.ModuleList([nn.Linear(6, 6)]), "stages": 1}, "forward"),
        ({"module": Branching(), "stages": 1}, "cannot be followed.*Write it as an nn.Sequential"),
        ({"module": nn.Sequential(Dictionary()), "stages": 1}, "a dict.*Let it return a tensor"),
        ({"module": Uncopied(), "stages": 1}, "cannot be copied.*Keep locks"),
        ({"stages": 8}, r"8 stages.*7 layer.*Use at most 7 stage"),
        ({"stages": 8, "devices": ["simulated:1ms"] * 8}, r"8 stages.*Use at most 7"),
        ({"balance": [3, 3]}, r"balance \[3, 3\] adds up to 6 layers, and the module has 7.*by \+1"),
        ({"balance": [3, 5]}, r"balance \[3, 5\] adds up to 8.*by -1"),
        ({"balance": [3, 0, 4]}, r"balance \[3, 0, 4\] leaves a stage empty.*at least one layer"),
        ({"balance": []}, r"balance \[\] leaves a stage empty"),
        ({"balance": [3.5, 3.5]}, "3.5 in a balance is no number of layers.*Give whole numbers"),
        ({"example": torch.ones(1, 5), "stages": 1}, r"layer 'linear1' raised.*float32 \(1, 5\).*Give an example"),
        ({"example": torch.ones(1, 6, dtype=torch.int64), "stages": 1}, r"int64 \(1, 6\)"),
        ({"example": (FRAME, FRAME), "stages": 1}, "layer 'linear1' raised"),
        (
            {"module": nn.Sequential(nn.Linear(6, 6), InPlaceLater()), "example": Pair(FRAME, FRAME), "stages": 1},
            "Pair",
        ),
        ({"module": _residual_in_place(), "balance": [1, 3]}, "'act' writes in place.*nearest that will do"),
    ],
)
async def test_pipeline_of_a_network_that_cannot_be_cut_is_refused_on_entering(options: Options, told: str) -> None:
    """What shows only when the network runs is refused on entering, by name, with the remedy, and leaves nothing."""
    pipeline = _make(**options)
    with pytest.raises(pa.PartitionError, match=told) as caught:
        await pipeline.__aenter__()
    assert str(caught.value).endswith("."), "the last sentence is the remedy"


async def test_layer_that_writes_in_place_into_what_only_it_uses_may_be_cut_off() -> None:
    """A layer in another stage that writes into its input is put together with the one before, or changes nothing."""
    net = nn.Sequential(nn.Linear(6, 6), InPlaceLater(), nn.Linear(6, 2))
    frames = frames_like(FRAME, 5)
    with pytest.raises(pa.PartitionError, match="writes in place"):
        await pa.Pipeline(net, FRAME, balance=[1, 2]).__aenter__()
    async with pa.Pipeline(net, FRAME, balance=[2, 1]) as pipeline:
        assert_same_bits(await streamed(pipeline, frames), called(net, frames))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"overflow": "drop"}, "unknown overflow policy 'drop'.*Use one of 'block'"),
        ({"overflow": None}, "unknown overflow policy None"),
        ({"max_age_s": 0.0}, "max_age_s is 0.0.*Pass more than 0"),
        ({"max_age_s": -1}, "max_age_s is -1"),
        ({"max_age_s": math.nan}, "max_age_s is nan"),
        ({"max_age_s": "1"}, "max_age_s is '1'"),
        ({"capacity": 0}, "capacity is 0.*Pass 1 or more"),
        ({"capacity": 2.0}, "capacity is 2.0"),
    ],
)
async def test_feed_of_impossible_options_is_refused(options: Options, told: str) -> None:
    """A feed's options are checked when it is made, and so are those of a stream; the pipeline goes on."""
    async with pa.Pipeline(dense(), FRAME, balance=[7]) as pipeline:
        with pytest.raises(pa.ConfigurationError, match=told):
            pipeline.feed(**options)  # type: ignore[arg-type]
        with pytest.raises(pa.ConfigurationError, match=told):
            await anext(pipeline.stream([FRAME], **options))  # type: ignore[arg-type]
        await pipeline.process(FRAME)


@pytest.mark.parametrize(
    ("module", "example", "frame", "expected"),
    [
        (dense, FRAME, torch.ones(1, 5), r"got a tensor \(1, 5\) of float32, expected a tensor \(1, 6\) of float32"),
        (dense, FRAME, torch.ones(2, 6), r"\(2, 6\)"),
        (dense, FRAME, torch.ones(6), r"\(6,\)"),
        (dense, FRAME, torch.ones(1, 6).half(), "float16"),
        (dense, FRAME, (FRAME, FRAME, FRAME), r"got a tuple \(a tensor"),
        (dense, FRAME, 5, "builtins.int"),
        (lambda: nn.Bilinear(6, 6, 2), (FRAME, FRAME), FRAME, r"expected a tuple \(\(1, 6\) of float32, \(1, 6\)"),
        (lambda: nn.Bilinear(6, 6, 2), (FRAME, FRAME), (FRAME,), "expected a tuple"),
        (lambda: nn.Bilinear(6, 6, 2), (FRAME, FRAME), (FRAME, FRAME.int()), r"int32\), expected a tuple"),
        (lambda: nn.Bilinear(6, 6, 2), (FRAME, FRAME), (FRAME, None), "NoneType"),
    ],
)
async def test_frame_that_is_not_like_the_example_is_refused_where_it_enters(
    module: Callable[[], nn.Module], example: pa.Value, frame: pa.Value, expected: str
) -> None:
    """By every way in, a frame of another kind, shape or dtype raises, names both, and reaches no stage."""
    net = module()
    layers = 7 if isinstance(net, nn.Sequential) else 1
    async with pa.Pipeline(net, example, balance=[layers]) as pipeline, pipeline.feed() as feed:
        with pytest.raises(pa.FrameError, match=expected) as caught:
            await pipeline.process(frame)
        assert str(caught.value).endswith("before put().")
        with pytest.raises(pa.FrameError):
            await feed.put(frame)
        with pytest.raises(pa.FrameError):
            feed.put_nowait(frame)
        with pytest.raises(pa.FrameError):
            await anext(pipeline.stream([frame]))
        statistics = pipeline.statistics()
        assert statistics.frames.dropped == {"invalid": 4}
        assert statistics.stages[0].frames == 0


@pytest.mark.parametrize("target", [5, "label", {"any": "thing"}, [torch.ones(1)], (), (torch.ones(1), 2)])
async def test_target_that_is_no_tensor_is_refused_where_it_enters(target: pa.Value) -> None:
    """A target of another kind raises, says how to make a tensor of it, and is counted as invalid."""
    async with pa.Pipeline(dense(), FRAME, balance=[7]) as pipeline:
        with pytest.raises(pa.FrameError, match=r"the target is.*Pass a tensor"):
            await pipeline.process(FRAME, target)
        assert pipeline.statistics().frames.dropped == {"invalid": 1}


def test_errors_of_arguments_are_value_errors_too() -> None:
    """Callers who know nothing of this library catch what they expect."""
    assert issubclass(pa.ConfigurationError, ValueError)
    assert issubclass(pa.PartitionError, pa.ConfigurationError)
    assert issubclass(pa.FrameError, ValueError)
    assert issubclass(pa.DeadlineExceeded, TimeoutError)
    assert issubclass(pa.MissingDependencyError, ImportError)
