"""Weights, and all that learning remembers, on disk and back: bit for bit, whole or not at all."""

from __future__ import annotations

import asyncio
import builtins
import copy
import json
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import partime_async as pa
from partime_async.checkpoint import FORMAT, Snapshot, StageRecord, read, write
from partime_async.learning.stepper import Memory
from partime_async.offload import in_thread
from tests.nets import TIMEOUT_S, Gate, Gated, dense

EXAMPLE = torch.zeros(1, 6)
mse = nn.functional.mse_loss
SGD = partial(torch.optim.SGD, lr=0.05)
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.01)),  # schedules write into it
    "rmsprop": partial(torch.optim.RMSprop, lr=0.001, centered=True, momentum=0.1),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "adafactor": partial(torch.optim.Adafactor, lr=0.01),
}


def warm_up(optimizer: Optimizer) -> LRScheduler:
    """Return schedulers in a row, one of which counts its milestones."""
    first = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8)
    then = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 9], gamma=0.5)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, then], [8])


def net() -> nn.Sequential:
    """Return a small network with a buffer that changes as it runs."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6)).train()


def pairs(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return frames of four rows, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)) for _ in range(count)]


def pipeline_of(learner: pa.Learner | None, *, balance: Sequence[int] = (2, 2)) -> pa.Pipeline:
    """Return a pipeline of this network."""
    return pa.Pipeline(net(), torch.zeros(4, 6), balance=balance, devices=["cpu"], learner=learner)


async def taught(pipeline: pa.Pipeline, source: Sequence[object]) -> list[pa.Result]:
    """Return the results of a stream, behind the last frame's lesson."""
    results = [result async for result in pipeline.stream(source)]
    await pipeline.state_dict()
    return results


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


async def read_off_loop(path: Path) -> Snapshot:
    """Read a file where that may block."""
    return await in_thread(lambda: read(path), name="read")


def files_in(folder: Path) -> list[Path]:
    """Return all files of a folder."""
    return list(folder.iterdir())


def header_of(path: Path) -> dict[str, object]:
    """Return this library's part of a file's header."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        header: dict[str, object] = json.loads(file.metadata()["partime_async"])
    return header


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, pa.rules.pipedream()) for name in OPTIMIZERS), ("adam", pa.rules.partime()), ("adam", pa.rules.replay())],
    ids=str,
)
async def test_learning_goes_on_from_a_file_bit_for_bit(name: str, rule: pa.UpdateRule, tmp_path: Path) -> None:
    """A fresh pipeline that loads the file does what the one that wrote it does when it is entered again."""
    path = tmp_path / "net.safetensors"
    learner = pa.Learner(mse, OPTIMIZERS[name], rule=rule, scheduler=warm_up)
    before, after = pairs(12), pairs(14, seed=1)
    first = pipeline_of(learner)
    async with first:
        await taught(first, before)
    await first.save(path)
    async with first:
        expected = await taught(first, after)
    second = pipeline_of(learner)
    async with second:
        await second.load(path)
        found = await taught(second, after)
    assert [result.weight_versions for result in found] == [result.weight_versions for result in expected]
    assert [result.loss for result in found] == [result.loss for result in expected]
    assert_same(await second.state_dict(), await first.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
async def test_learning_goes_on_from_a_snapshot_bit_for_bit(name: str) -> None:
    """In memory it is the same as by a file, twice over: what goes on from a snapshot changes nothing in it."""
    learner = pa.Learner(mse, OPTIMIZERS[name], scheduler=warm_up)
    before, after = pairs(12), pairs(14, seed=1)
    first = pipeline_of(learner)
    async with first:
        await taught(first, before)
        snapshot = await first.snapshot()
    async with first:
        await taught(first, after)
        expected = await first.state_dict()
    for _ in range(2):
        async with pipeline_of(learner) as second:
            await second.resume(snapshot)
            await taught(second, after)
            assert_same(await second.state_dict(), expected)


async def test_snapshot_of_another_optimizer_or_network_is_refused_and_changes_nothing() -> None:
    """The error says that it is a snapshot, and what it was made with; its weights alone can be taken."""
    async with pipeline_of(pa.Learner(mse, OPTIMIZERS["adam"])) as first, pipeline_of(pa.Learner(mse, SGD)) as second:
        await taught(first, pairs(4))
        snapshot, before = await first.snapshot(), await second.state_dict()
        with pytest.raises(pa.CheckpointError, match=r"^the snapshot: stage 0 was trained with .*Adam "):
            await second.resume(snapshot)
        assert_same(await second.state_dict(), before)
        await second.resume(snapshot, weights_only=True)
        assert_same(await second.state_dict(), snapshot.weights)
        async with pa.Pipeline(dense(), EXAMPLE, stages=1) as other:
            with pytest.raises(pa.CheckpointError, match=r"^the snapshot: "):
                await other.resume(snapshot)


async def test_exact_learning_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    """Where no gradient is on its way, saving in mid-stream and loading elsewhere changes nothing at all."""
    path = tmp_path / "net.safetensors"
    learner = pa.Learner(mse, OPTIMIZERS["adam"], rule=pa.rules.exact(), scheduler=warm_up)
    before, after = pairs(8), pairs(8, seed=1)
    async with pipeline_of(learner) as first:
        await taught(first, before)
        await first.save(path)
        await taught(first, after)
        expected = await first.state_dict()
    async with pipeline_of(learner) as second:
        await taught(second, pairs(3, seed=5))  # something else before
        await second.load(path)
        await taught(second, after)
        assert_same(await second.state_dict(), expected)


async def test_save_and_load_belong_to_one_frame_boundary_while_the_stream_goes_on(tmp_path: Path) -> None:
    """What is saved behind frame t is what frame t left, over all stages, however many frames follow at once."""
    path = tmp_path / "net.safetensors"
    source = pairs(30)
    learner = pa.Learner(mse, OPTIMIZERS["momentum"])
    async with pipeline_of(learner) as pipeline, pipeline.feed(capacity=40) as feed:
        for frame, target in source[:20]:
            feed.put_nowait(frame, target)
        for _ in range(5):
            await anext(feed)
        saving = asyncio.ensure_future(pipeline.save(path))
        await asyncio.sleep(0)
        for frame, target in source[20:]:
            feed.put_nowait(frame, target)
        await saving
        for _ in source[5:]:
            await anext(feed)
    frames = header_of(path)["frames"]
    assert isinstance(frames, int)
    assert 5 <= frames <= 30
    async with pipeline_of(learner) as other:
        await taught(other, source[:frames])
        expected = await other.state_dict()
    assert_same((await read_off_loop(path)).weights, expected)


async def test_frames_are_counted_over_runs_and_files(tmp_path: Path) -> None:
    """A file says how many frames its network has seen, in all its lives."""
    path = tmp_path / "net.safetensors"
    pipeline = pipeline_of(pa.Learner(mse, SGD))
    for _ in range(2):
        async with pipeline:
            await taught(pipeline, pairs(3))
    await pipeline.save(path)
    assert header_of(path)["frames"] == 6
    async with pipeline_of(pa.Learner(mse, SGD)) as other:
        await taught(other, pairs(4))
        await other.load(path)
        await taught(other, pairs(5))
        await other.save(path)
    assert header_of(path)["frames"] == 11


async def test_file_is_readable_by_any_reader_of_safetensors(tmp_path: Path) -> None:
    """The weights are there under the module's own keys, next to what learning remembers."""
    path = tmp_path / "net.safetensors"
    pipeline = pipeline_of(pa.Learner(mse, OPTIMIZERS["adam"]))
    async with pipeline:
        await taught(pipeline, pairs(4))
        await pipeline.save(path)
        state = await pipeline.state_dict()
    tensors = safetensors.torch.load_file(path)
    module = net()
    module.load_state_dict({name: tensor for name, tensor in tensors.items() if "/" not in name})
    assert_same(module.state_dict(), state)
    assert "learning/1/optimizer/state/0/exp_avg" in tensors
    header = header_of(path)
    assert header["format"] == FORMAT
    assert header["torch"] == torch.__version__


@pytest.mark.parametrize("with_learner", [False, True])
async def test_weights_alone_travel_between_learning_and_inference(with_learner: bool, tmp_path: Path) -> None:
    """A pipeline without a learner takes the weights of any file; one with a learner must ask for them alone."""
    path = tmp_path / "net.safetensors"
    writer = pipeline_of(pa.Learner(mse, SGD) if with_learner else None)
    async with writer:
        await taught(writer, pairs(4))
        await writer.save(path)
    state = await writer.state_dict()
    async with pipeline_of(None) as reader:
        await reader.load(path)
        assert_same(await reader.state_dict(), state)
    async with pipeline_of(pa.Learner(mse, OPTIMIZERS["adam"]), balance=[1, 3]) as learning:
        before = await learning.state_dict()
        with pytest.raises(pa.CheckpointError, match="weights_only=True"):
            await learning.load(path)
        assert_same(await learning.state_dict(), before)
        await learning.load(path, weights_only=True)
        assert_same(await learning.state_dict(), state)


async def test_safetensors_file_of_another_program_is_one_of_weights(tmp_path: Path) -> None:
    """What others wrote can be loaded, as weights."""
    path = tmp_path / "net.safetensors"
    other = net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.25)
    safetensors.torch.save_file(dict(other.state_dict()), path)
    async with pipeline_of(None) as pipeline:
        await pipeline.load(path)
        assert_same(await pipeline.state_dict(), other.state_dict())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
async def test_weights_that_torch_saved_are_taken(wrapper: str | None, tmp_path: Path) -> None:
    """As they are, or under the name that training programs keep them by, beside an optimiser's."""
    path, module = tmp_path / "net.pt", net()
    state = module.state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"state": {}}}, path)
    async with pipeline_of(pa.Learner(mse, SGD)) as pipeline:
        with torch.no_grad():
            await pipeline.load_state_dict({name: torch.ones_like(item) for name, item in state.items()})
        await pipeline.load(path, weights_only=True)
        assert_same(await pipeline.state_dict(), state)
        with pytest.raises(pa.CheckpointError, match="weights_only=True"):
            await pipeline.load(path)


class Harm:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("harm"),)


async def test_file_of_torch_with_more_than_weights_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole module, code, a traced program, a list: the remedy is said, and nothing of it is executed."""
    monkeypatch.chdir(tmp_path)
    torch.save(net(), tmp_path / "module.pt")
    torch.save({"weight": Harm()}, tmp_path / "harm.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        other.writestr("readme", "hello")
    async with pipeline_of(None) as pipeline:
        for name in ("module", "harm", "list", "empty", "other"):
            with pytest.raises(pa.CheckpointError, match=r"Write the weights alone: torch\.save\(module\.state_dict"):
                await pipeline.load(tmp_path / f"{name}.pt")
    assert "harm" not in {path.name for path in files_in(tmp_path)}


async def test_load_of_another_optimizer_schedule_or_cut_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """What does not fit is named before anything changes."""
    path = tmp_path / "net.safetensors"
    writer = pipeline_of(pa.Learner(mse, OPTIMIZERS["adam"], scheduler=warm_up))
    async with writer:
        await taught(writer, pairs(4))
    await writer.save(path)
    frozen = net()
    frozen[0].requires_grad_(False)
    refusals: list[tuple[pa.Pipeline, str]] = [
        (pipeline_of(pa.Learner(mse, SGD, scheduler=warm_up)), "stage 0 was trained with torch.optim.adam.Adam"),
        (pipeline_of(pa.Learner(mse, OPTIMIZERS["adam"])), "and no scheduler"),
        (pipeline_of(pa.Learner(mse, OPTIMIZERS["adam"], scheduler=warm_up), balance=[1, 3]), "balance"),
        (
            pa.Pipeline(
                frozen,
                torch.zeros(4, 6),
                balance=[2, 2],
                devices=["cpu"],
                learner=pa.Learner(mse, OPTIMIZERS["adam"], scheduler=warm_up),
            ),
            "parameters",
        ),
    ]
    for pipeline, reason in refusals:
        async with pipeline:
            await taught(pipeline, pairs(2))
            before = await pipeline.state_dict()
            with pytest.raises(pa.CheckpointError, match=reason) as caught:
                await pipeline.load(path)
            assert caught.value.path == str(path)
            assert_same(await pipeline.state_dict(), before)
            assert (await pipeline.process(*pairs(1)[0])).error is None


async def test_load_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """Keys, shapes and dtypes are checked against the module's."""
    path = tmp_path / "net.safetensors"
    async with pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"]) as other:
        await other.save(path)
    async with pipeline_of(None) as pipeline:
        before = await pipeline.state_dict()
        with pytest.raises(pa.CheckpointError, match="state"):
            await pipeline.load(path)
        assert_same(await pipeline.state_dict(), before)


async def test_damaged_files_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    """Whatever is in the file: one clear error, and the pipeline as before."""
    path = tmp_path / "net.safetensors"
    pipeline = pipeline_of(pa.Learner(mse, OPTIMIZERS["momentum"]))
    async with pipeline:
        await taught(pipeline, pairs(3))
        await pipeline.save(path)
        whole = path.read_bytes()
        before = await pipeline.state_dict()
        length = struct.unpack("<Q", whole[:8])[0]
        header, body = whole[8 : 8 + length].decode(), whole[8 + length :]
        damaged = {
            "no safetensors": b"PK\x03\x04 something else entirely",
            "no safetensors file": b"",
            "or damaged": whole[:-5],
            "header is damaged: JSON": _with_header(header.replace('{\\"format\\"', '[\\"format\\"'), body),
            "header is damaged: KeyError": _with_header(header.replace('\\"frames\\"', '\\"frame\\"'), body),
            "damaged: ValueError: unknown kind": _with_header(header.replace('{\\"dict\\"', '{\\"dice\\"'), body),
            "it has the format 9": _with_header(header.replace(f'\\"format\\": {FORMAT}', '\\"format\\": 9'), body),
        }
        for reason, content in damaged.items():
            path.write_bytes(content)
            with pytest.raises(pa.CheckpointError, match=reason):
                await pipeline.load(path)
            assert_same(await pipeline.state_dict(), before)
        path.unlink()
        with pytest.raises(FileNotFoundError):
            await pipeline.load(path)


def _with_header(header: str, body: bytes) -> bytes:
    padded = header + " " * (-len(header) % 8)
    return struct.pack("<Q", len(padded)) + padded.encode() + body


async def test_optimizer_state_of_another_make_is_refused_before_anything_changes(tmp_path: Path) -> None:
    """Also what only the optimiser itself can tell is found out by a rehearsal."""
    path = tmp_path / "net.safetensors"
    pipeline = pipeline_of(pa.Learner(mse, OPTIMIZERS["momentum"]))
    async with pipeline:
        await taught(pipeline, pairs(3))
        await pipeline.save(path)
        whole = await read_off_loop(path)
        assert whole.stages is not None
        first, last = whole.stages
        assert last.memory.optimizer is not None
        groups = [{"params": [0], "lr": 1.0}, {"params": [1], "lr": 1.0}]
        odd = StageRecord(
            last.parameters, last.version, last.updates, last.kinds, Memory({"state": {}, "param_groups": groups}, None)
        )
        await in_thread(lambda: write(path, Snapshot(whole.weights, whole.frames, (first, odd))), name="write")
        before = await pipeline.state_dict()
        with pytest.raises(pa.CheckpointError, match="stage 1 does not take"):
            await pipeline.load(path)
        assert_same(await pipeline.state_dict(), before)


async def test_save_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor a temporary one is left."""
    path = tmp_path / "net.safetensors"
    async with pipeline_of(None) as pipeline:
        await pipeline.save(path)
        whole = path.read_bytes()

        def break_off(tensors: object, name: str, metadata: object = None) -> None:
            Path(name).write_bytes(b"half a file")
            raise OSError(28, "no space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", break_off)
        with pytest.raises(OSError, match="no space"):
            await pipeline.save(path)
        assert path.read_bytes() == whole
        assert files_in(tmp_path) == [path]


async def test_save_into_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The remedy is said."""
    async with pipeline_of(None) as pipeline:
        with pytest.raises(pa.CheckpointError, match="Create it first"):
            await pipeline.save(tmp_path / "nowhere" / "net.safetensors")


async def test_save_that_is_cancelled_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    """Cancelled at any moment, with the stage held up or not, it leaves no temporary file."""
    gate = Gate()
    module = nn.Sequential(Gated(gate), nn.Linear(6, 6))
    for steps in range(6):
        path = tmp_path / f"{steps}.safetensors"
        async with pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"], capture=False) as pipeline:
            gate.close()
            busy = asyncio.ensure_future(pipeline.process(EXAMPLE))
            await gate.reached()
            saving = asyncio.ensure_future(pipeline.save(path))
            for step in range(steps):
                if step == 3:
                    gate.open()
                    await busy
                await asyncio.sleep(0)
            saving.cancel()
            gate.open()
            await asyncio.wait([saving, busy], timeout=TIMEOUT_S)
        if path.exists():
            assert (await read_off_loop(path)).stages is None
    assert not [path for path in files_in(tmp_path) if path.suffix == ".part"]


async def test_save_without_safetensors_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    found = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return found(name, *args, **kwargs)  # type: ignore[arg-type]

    async with pipeline_of(None) as pipeline:
        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(pa.MissingDependencyError, match=r"partime-async\[checkpoint\]"):
            await pipeline.save(tmp_path / "net.safetensors")


def test_file_holds_every_kind_of_value_that_optimizers_and_schedules_remember(tmp_path: Path) -> None:
    """Trees of tensors, numbers, texts, lists, tuples, dictionaries and counters come back as they went."""
    path = tmp_path / "tree.safetensors"
    scheduler: dict[str, object] = {
        "nothing": None,
        "numbers": [1, 2.5, -0.0, 1e-300, True, math.inf, -math.inf],
        "pair": (1, (2, "three")),
        "milestones": Counter({4: 1, 9: 2}),
        "deep": {0: {"tensor": torch.arange(3)}, "empty": {}, "none": []},
    }
    optimizer: dict[str, object] = {
        "state": {0: {"step": torch.tensor(3.0), "half": torch.ones(2, 3).half(), "flags": torch.tensor([True])}},
        "wide": torch.arange(6.0).reshape(2, 3).T,
        "none": torch.empty(0, 4),
    }
    stage = StageRecord(("0.weight",), 7, 6, ("a.B", "c.D"), Memory(optimizer, scheduler))
    write(
        path,
        Snapshot({"0.weight": torch.randn(2, 2)}, 3, (stage, StageRecord((), 0, 0, (None, None), Memory(None, None)))),
    )
    found = read(path)
    assert found.stages is not None
    first, second = found.stages
    assert second == StageRecord((), 0, 0, (None, None), Memory(None, None))
    assert (first.parameters, first.version, first.updates, first.kinds) == (("0.weight",), 7, 6, ("a.B", "c.D"))
    assert _comparable(first.memory.scheduler) == _comparable(scheduler)
    assert _comparable(first.memory.optimizer) == _comparable(optimizer)
    assert first.memory.scheduler is not None
    assert type(first.memory.scheduler["milestones"]) is Counter


def _comparable(value: object) -> object:
    if isinstance(value, Tensor):
        return str(value.dtype), value.shape, value.tolist()
    if isinstance(value, dict):
        return [(key, _comparable(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [_comparable(item) for item in value]
    return type(value), repr(value)


@pytest.mark.parametrize(
    "value",
    [object(), {1.5: 1}, {(1, 2): 3}, torch.eye(2).to_sparse(), range(3)],
    ids=lambda value: type(value).__name__,
)
def test_value_without_a_safe_form_is_refused(value: object, tmp_path: Path) -> None:
    """Nothing that would have to be pickled is ever written; the error says what it was."""
    path = tmp_path / "tree.safetensors"
    stage = StageRecord((), 0, 0, (None, None), Memory({"odd": value}, None))
    with pytest.raises(pa.CheckpointError, match="0/optimizer/odd"):
        write(path, Snapshot({}, 0, (stage,)))
    assert not files_in(tmp_path)


async def test_extra_state_of_a_module_travels_with_its_weights(tmp_path: Path) -> None:
    """What a module keeps beside its tensors comes back, too."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))
            self.notes: dict[str, object] = {"seen": 3, "name": "x"}

        def get_extra_state(self) -> dict[str, object]:
            return copy.deepcopy(self.notes)

        def set_extra_state(self, state: dict[str, object]) -> None:
            self.notes = state

        def forward(self, value: Tensor) -> Tensor:
            return value * self.weight

    path = tmp_path / "net.safetensors"
    module = nn.Sequential(Counts(), nn.Linear(6, 6))
    module[0].notes = {"seen": 12, "name": "y"}  # type: ignore[assignment]
    async with pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"]) as pipeline:
        await pipeline.save(path)
    async with pa.Pipeline(nn.Sequential(Counts(), nn.Linear(6, 6)), EXAMPLE, balance=[1, 1], devices=["cpu"]) as other:
        await other.load(path)
        assert (await other.state_dict())["0._extra_state"] == {"seen": 12, "name": "y"}


async def test_save_and_load_before_the_pipeline_was_entered_are_refused(tmp_path: Path) -> None:
    """There is nothing yet to save, and nowhere to load into."""
    pipeline = pipeline_of(None)
    with pytest.raises(pa.PipelineNotRunning, match="never entered"):
        await pipeline.save(tmp_path / "net.safetensors")
    with pytest.raises(pa.PipelineNotRunning, match="never entered"):
        await pipeline.load(tmp_path / "net.safetensors")


async def test_loaded_weights_are_the_ones_to_go_back_to(tmp_path: Path) -> None:
    """With the policy restore, a file that was loaded is the first good copy."""
    path = tmp_path / "net.safetensors"
    learner = pa.Learner(mse, SGD, rule=pa.rules.exact(), non_finite="restore", snapshot_every=50)
    frame, target = pairs(1)[0]
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    async with pa.Pipeline(module, torch.zeros(4, 6), balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        for _ in range(3):
            await pipeline.process(frame, target)
        await pipeline.save(path)
        state = await pipeline.state_dict()
        await pipeline.process(frame, target)
        await pipeline.load(path)
        await pipeline.process(frame, target)
        await pipeline.process(frame, target * math.nan)
        await pipeline.process(frame)
        assert_same(await pipeline.state_dict(), state)
