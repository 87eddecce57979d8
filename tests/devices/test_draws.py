"""A stage's own random numbers: the same ones at any timing, and those of PyTorch itself where there is one stage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import partime_async as pa
from partime_async.devices.draws import Draws, drawing_layers
from tests.nets import assert_same_bits, dense

EXAMPLE = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def _one_thread_computes() -> Iterator[None]:
    """Let the module itself compute as a stage does: kernels give other bits with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Noise(nn.Module):
    """Draws in every way there is."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, and a good deal of noise."""
        made = torch.rand(3, 4) + torch.randn(3, 4) + torch.randint(0, 5, (3, 4)) + torch.randint(3, (3, 4))
        like = torch.rand_like(value) + torch.randn_like(value) + torch.randint_like(value, 4)
        drawn = torch.multinomial(torch.ones(4), 4) + torch.randperm(4) + torch.poisson(torch.ones(3, 4))
        changed = torch.empty(3, 4).uniform_().add_(torch.empty(3, 4).exponential_()).add_(torch.normal(value, 1.0))
        return value + made + like + drawn + changed + torch.bernoulli(torch.full((3, 4), 0.5))


class Functional(nn.Module):
    """Drops out by a function, not by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, turned, with holes."""
        return F.dropout(self.linear(value), 0.3)


class Inferring(nn.Module):
    """Drops out in inference mode, where PyTorch takes operations whole."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input with holes."""
        with torch.inference_mode():
            holes = F.dropout(value, 0.5)
        return holes.clone()


class Recurrent(nn.Module):
    """A recurrent net with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, value: Tensor) -> Tensor:
        """Return what it makes of the rows as a sequence."""
        output: Tensor = self.gru(value.unsqueeze(0))[0].squeeze(0)
        return output


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4), nn.ReLU()), ("1",)),
    "kinds of dropout": (
        lambda: nn.Sequential(nn.RReLU(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Dropout1d()),
        ("0", "1", "2", "3"),
    ),
    "noise": (lambda: nn.Sequential(nn.Linear(4, 4), Noise()), ("1",)),
    "a function": (Functional, ("",)),
    "a layer in a layer that draws": (lambda: nn.Sequential(nn.Sequential(Functional(), nn.Dropout())), ("0.0", "0.1")),
    "inference mode": (lambda: nn.Sequential(nn.Linear(4, 4), Inferring()), ("1",)),
    "a recurrent net": (lambda: nn.Sequential(nn.Identity(), Recurrent()), ("1.gru",)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        ("dropout", "dropout1", "dropout2", "self_attn"),
    ),
    "nothing drawn": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), ()),
    "evaluation": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), ()),
}


@pytest.mark.parametrize("name", NETS)
def test_layers_that_draw_are_found_and_give_the_numbers_of_the_module_itself(name: str) -> None:
    """From one seed the first stage draws what the plain module does; PyTorch's own generator is not touched."""
    make, expected = NETS[name]
    net = make()
    state = torch.random.get_rng_state()
    layers = drawing_layers(net, EXAMPLE)
    assert layers == expected
    draws = Draws(net, layers, stage=0)
    draws.seed(state)
    with torch.no_grad():
        found = [draws.work(net)(EXAMPLE) for _ in range(3)]
        assert torch.equal(torch.random.get_rng_state(), state)
        assert_same_bits(found, [net(EXAMPLE) for _ in range(3)])
    assert not any("forward" in vars(layer) for layer in net.modules())


def test_numbers_drawn_again_are_the_same_and_later_ones_go_on() -> None:
    """A pass that is done again draws what it drew, as often as it is asked to, and moves nothing."""
    net = nn.Dropout(0.5)
    draws = Draws(net, [""], stage=1)
    draws.seed(torch.random.get_rng_state())
    work = draws.work(net)
    work(EXAMPLE)
    state = draws.state()
    first = work(EXAMPLE)
    for _ in range(2):
        with draws.again(state):
            assert_same_bits(net(EXAMPLE), first)
    second = work(EXAMPLE)
    draws.seed(torch.random.get_rng_state())
    assert_same_bits([work(EXAMPLE) for _ in range(3)][1:], [first, second])


def test_every_stage_draws_other_numbers_and_a_seed_the_same() -> None:
    """Stages of one run differ; two runs from one state do not."""
    state = torch.random.get_rng_state()
    drawn: list[list[pa.Value]] = []
    for _ in range(2):
        run: list[pa.Value] = []
        for stage in range(4):
            draws = Draws(nn.Dropout(0.5), [""], stage)
            draws.seed(state)
            run.append(draws.work(lambda value: torch.rand(8))(EXAMPLE))
        drawn.append(run)
    assert_same_bits(*drawn)
    assert len({tuple(each.tolist()) for each in drawn[0] if isinstance(each, Tensor)}) == 4


def test_generator_that_a_layer_brings_along_is_its_own() -> None:
    """A layer with a generator of its own draws from that, here as anywhere."""

    class Own(nn.Module):
        """Draws from its own generator."""

        def __init__(self) -> None:
            super().__init__()
            self.seed = 7

        def forward(self, value: Tensor) -> Tensor:
            """Return the input and a number."""
            return value + torch.rand(1, generator=torch.Generator().manual_seed(self.seed))

    net = Own()
    assert drawing_layers(net, EXAMPLE) == ()
    draws = Draws(net, [""], stage=0)
    draws.seed(torch.random.get_rng_state())
    assert_same_bits(draws.work(net)(EXAMPLE), net(EXAMPLE))


def test_layer_that_raises_leaves_everything_as_it_was() -> None:
    """The generators of PyTorch serve the thread again, and the layer has its own forward, when the work has raised."""

    class Fails(nn.Module):
        """Draws, and raises."""

        def forward(self, value: Tensor) -> Tensor:
            """Raise."""
            raise ValueError(float(torch.rand(1)))

    net = nn.Sequential(Fails())
    draws = Draws(net, ["0"], stage=0)
    draws.seed(torch.random.get_rng_state())
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"0\."):
        draws.work(net)(EXAMPLE)
    assert "forward" not in vars(net[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert not torch.equal(torch.random.get_rng_state(), state)


def _holed() -> nn.Sequential:
    torch.manual_seed(11)
    first, second = dense(layers=1), dense(layers=1)
    return nn.Sequential(*first, nn.Dropout(0.5), *second, nn.Dropout(0.5))


async def test_one_stage_draws_what_the_module_itself_draws() -> None:
    """A pipeline of one stage in training mode equals the unpipelined module, dropout included."""
    net, frames = _holed(), [torch.randn(2, 6) for _ in range(5)]
    async with pa.Pipeline(net, frames[0], stages=1) as pipeline:
        found = [(await pipeline.process(frame)).output for frame in frames]
    with torch.no_grad():
        assert_same_bits(found, [net(frame) for frame in frames])


async def test_stages_that_draw_give_the_same_numbers_while_others_draw_too() -> None:
    """Two stages draw the same numbers in every run, however their threads and those of the program interleave."""
    net, frames = _holed(), [torch.randn(2, 6) for _ in range(30)]
    state, outputs = torch.random.get_rng_state(), []
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            torch.rand(100)

    for is_disturbed in (False, True):
        torch.random.set_rng_state(state)
        pipeline = pa.Pipeline(net, frames[0], balance=[len(net) // 2, len(net) - len(net) // 2])
        async with pipeline:
            thread = threading.Thread(target=disturb)
            if is_disturbed:
                thread.start()
            outputs.append([result.output async for result in pipeline.stream(frames)])
            ended.set()
            if is_disturbed:
                thread.join()
                ended.clear()
    assert_same_bits(*outputs)
