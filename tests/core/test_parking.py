"""Parking: maps of the exact walk while only one micro-batch takes memory, whatever the model does with its tensors."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any

import accelerate
import pytest
import torch
from helpers import TensorModel, assert_identical, chain, encoded, prompts, randomise, swapped, tiny_llama, walkers
from quantised_layers import QUANTISED, quantise
from torch import Tensor, UntypedStorage, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from act_core import ActMap, MapError, fit
from act_core.fitting import parking, room
from act_core.fitting.memory import SCRATCH, storage_of
from act_core.fitting.parking import Lot, Parking
from act_core.fitting.prepare import Uncompiled
from act_core.fitting.temporary_file import TemporaryFile
from act_core.models.diffusers import DiffusersModel

SOURCE, TARGET = prompts("source", 9), prompts("target", 8)
LAYERS = "toy/layers.*"


@pytest.fixture
def parks(monkeypatch: pytest.MonkeyPatch, always_parks: None) -> list[int]:
    """The number of storages that are parked each time, with `always_parks`."""
    numbers: list[int] = []
    move_away = Parking.move_away

    def counting(self: Parking, leaving: Sequence[Any]) -> None:
        numbers.append(len(leaving))
        move_away(self, leaving)

    monkeypatch.setattr(Parking, "move_away", counting)
    return numbers


def both(model: Any, source: Sequence[str] = SOURCE, target: Sequence[str] = TARGET, **settings: Any) -> ActMap:
    """The map of a parked fit, which must be that of the unbounded one."""
    free = fit(model, source, target, batch_size=3, **settings)
    parked = fit(model, source, target, batch_size=3, memory_budget=1, **settings)
    assert_identical(free, parked)
    assert parked.record.walk == "exact"
    return parked


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made under any instance, in any thread, and that are alive."""

    made: dict[int, weakref.ref[UntypedStorage]]
    peak = 0

    def __init__(self, other: LiveBytes | None = None) -> None:
        super().__init__()
        self.first = other or self
        self.made = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = self.first.made
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and (storage := storage_of(tensor)) is not None:
                made[storage._cdata] = weakref.ref(storage)
        alive = [storage for ref in list(made.values()) if (storage := ref()) is not None]
        self.first.peak = max(self.first.peak, sum(storage.nbytes() for storage in alive))
        return result


class Counted(TensorModel):
    """30 KiB for each activation of a prompt, all of them counted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, ())
        self.live = LiveBytes()

    def rows(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([encoded(prompt, (480, 16)) for prompt in prompts])

    def _run(self, prompts: Sequence[str]) -> Any:
        with LiveBytes(self.live):
            return super()._run(prompts)


class Skipping(nn.Module):
    """Keeps its first activations for its last layer, as a UNet does; with views, aliases and in-place operators."""

    def __init__(self, channels: int = 16, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(channels, channels) for _ in range(layers)])
        self.last: Tensor | None = None
        randomise(self, scale=0.2)

    def forward(self, x: Tensor) -> Tensor:
        skip = x * 2
        half, alias = skip[..., :8], skip.detach()
        for layer in self.layers[:-1]:
            left, right = x.chunk(2, -1)
            x = layer(x)
            self.last = x
            x[..., :8].mul_(0.5).add_(left)
            x = x.view(x.shape).tanh_()
            x[..., 8:] += right
        half += 1
        return self.layers[-1](x + alias)


def test_parked_map_is_that_of_the_unbounded_walk(parks: list[int]) -> None:
    act_map = both(tiny_llama(), sites="all", support="observed")
    assert len(parks) == len(act_map) * 6  # micro-batches
    assert max(parks) > 3


@pytest.mark.parametrize("settings", [{"moved": "both"}, {"order": "simultaneous"}, {"interval": "pooled"}])
def test_parked_map_is_exact_with_other_settings(always_parks: None, settings: dict[str, Any]) -> None:
    both(TensorModel(Skipping(), (5, 16)), sites=LAYERS, support="observed", **settings)


def test_parked_map_of_vectors_is_exact(always_parks: None) -> None:
    both(chain(), sites=LAYERS)


@pytest.mark.usefixtures("always_parks")
def test_parked_map_of_a_pipeline_is_exact(model: DiffusersModel) -> None:
    both(model, sites="auto")


@pytest.mark.usefixtures("always_parks")
@pytest.mark.parametrize("library", QUANTISED)
def test_parked_map_of_a_quantised_model_is_exact(library: str) -> None:
    model = tiny_llama()
    quantise(model.module, library)
    both(model, sites="norms")


@pytest.mark.usefixtures("always_parks")
def test_parked_map_under_inference_mode_and_autocast_is_exact() -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        both(tiny_llama(), sites="norms")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # caches the weights that it has cast
        both(tiny_llama(), sites="norms")


@pytest.mark.usefixtures("always_parks")
def test_parked_map_of_an_offloaded_model_is_exact() -> None:
    model = tiny_llama()
    accelerate.cpu_offload(model.module, torch.device("cpu"))
    free = fit(tiny_llama(), SOURCE, TARGET, sites="norms", batch_size=3)
    assert_identical(free, fit(model, SOURCE, TARGET, sites="norms", batch_size=3, memory_budget=1))


def test_main_memory_holds_what_an_accelerator_parks(monkeypatch: pytest.MonkeyPatch, parks: list[int]) -> None:
    # A CPU has storages of the same kind, so that the same code can copy and resize them.
    monkeypatch.setattr(TemporaryFile, "write", lambda _, storage: parking._copied(storage))
    both(TensorModel(Skipping(), (5, 16)), sites=LAYERS)
    assert max(parks) > 1


# --- the budget


def test_live_storages_stay_within_the_budget() -> None:
    source, target, budget = prompts("source", 30), prompts("target", 30), 2 << 20
    model, free = Counted(Skipping()), Counted(Skipping())
    with model.live:
        act_map = fit(model, source, target, sites=LAYERS, memory_budget=SCRATCH + budget)
    with free.live:
        fit(free, source, target, sites=LAYERS)
    assert free.live.peak > 3 * budget
    assert budget / 4 < model.live.peak <= budget
    assert act_map.record.walk == "exact"
    assert not act_map.record.notes


def test_smallest_budget_that_is_named_is_enough() -> None:
    model = Counted(Skipping())
    with pytest.raises(MapError, match=r"allow at least 73 MiB"):
        fit(model, SOURCE, TARGET, sites=LAYERS, memory_budget=1 << 20)
    with model.live:
        assert fit(model, SOURCE, TARGET, sites=LAYERS, memory_budget=73 << 20).record.walk == "exact"
    assert model.live.peak <= (73 << 20) - SCRATCH


def test_short_main_memory_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 2 << 20)
    many = prompts("source", 30), prompts("target", 30)
    act_map = fit(Counted(Skipping()), *many, sites=LAYERS, memory_budget=SCRATCH + (1 << 20))
    assert act_map.record.walk == "streamed"


def test_unknown_devices_park_nothing() -> None:
    assert room.room_to_park({"cpu"}) > 0
    assert room.room_to_park({"cuda"}) > 0
    assert room.room_to_park({"mps", "cpu"}) == 0


def test_full_disk_leaves_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert room.room_to_park({"cpu"}) == 500
    assert room.room_to_park({"cuda"}) > 500


# --- what micro-batches share


class Cached(nn.Module):
    """Makes a table in its first run, keeps it in several places, and reads it in every later one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.table: Tensor | None = None
        self.last: Tensor | None = None
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, 16) + 0.5
            self.register_buffer("scale", self.table * 2, persistent=False)
        for layer in self.layers:
            x = self.last = layer(x * self.table) * self.scale
        return x


def cached_is_whole(module: Cached) -> None:
    table = torch.linspace(0, 1, 16) + 0.5
    assert module.table is not None
    assert torch.equal(module.table, table)
    assert torch.equal(module.scale, table * 2)  # pyright: ignore[reportArgumentType]
    assert module.last is not None
    assert module.last.untyped_storage().nbytes() == module.last.numel() * 4
    assert torch.equal(module(torch.ones(2, 16)), module(torch.ones(2, 16)))


@pytest.mark.usefixtures("always_parks")
def test_table_that_a_module_caches_is_not_destroyed() -> None:
    module = Cached()
    model = TensorModel(module, (16,))
    # The dry run must not make the table.
    tables = iter([True])

    def forget(_: object) -> None:
        if next(tables, False) or model.resident <= 3:
            module.table = None

    model.on_run = forget
    parked = fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=3, memory_budget=1)
    cached_is_whole(module)
    assert_identical(parked, fit(TensorModel(Cached(), (16,)), SOURCE, TARGET, sites=LAYERS, batch_size=3))


@pytest.mark.usefixtures("always_parks")
def test_progress_callback_may_run_the_model() -> None:
    module = Cached()
    model = TensorModel(module, (16,))
    model.on_run = lambda _: setattr(module, "table", None)
    previews: list[Tensor] = []

    def preview(done: int, *_: object) -> None:
        previews.append(module.layers[0](torch.ones(1, 16) * module.table))  # pyright: ignore

    fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=3, memory_budget=1, progress=preview)
    assert len(previews) == 3
    assert all(torch.equal(one, previews[0]) for one in previews)


# --- one micro-batch


@pytest.fixture
def lot() -> Lot:
    # The walk's own mode is entered in another thread.
    return Parking().lot()


def nbytes(*tensors: Tensor) -> list[int]:
    return [tensor.untyped_storage().nbytes() for tensor in tensors]


def test_park_empties_each_storage_and_unpark_fills_it(lot: Lot) -> None:
    before = torch.arange(6.0)
    with lot:
        x, given = torch.arange(8.0) + 1, before[2:]
        view, alias = x[2:4], x.detach()
        lot.park()
        assert nbytes(x, view, alias, given) == [0, 0, 0, 24]
        lot.unpark()
        assert nbytes(x, view, alias) == [32, 32, 32]
        assert view.tolist() == [3, 4]
        alias.add_(1)
        assert view.tolist() == [4, 5]


def test_storages_that_are_not_used_stay_away_until_they_are_read(lot: Lot) -> None:
    with lot:
        skip, x = torch.ones(4) * 2, torch.ones(4)
        lot.park()
        lot.unpark()
        x = x + 1
        lot.park()
        lot.unpark()
        assert nbytes(skip, x) == [0, 16]
        assert (skip + x).tolist() == [4, 4, 4, 4]
        assert nbytes(skip) == [16]


def test_kept_tensors_and_those_in_numpy_stay(lot: Lot) -> None:
    with lot:
        kept, shared = torch.ones(4) * 2, torch.ones(4) * 3
        array = shared.numpy()
        lot.park(keep=[kept[:2]])
        assert nbytes(kept, shared) == [16, 16]
        assert array.tolist() == [3, 3, 3, 3]


def test_storages_freed_while_parked_give_their_place_back() -> None:
    file = TemporaryFile()
    with Parking() as parked, parked.lot() as lot:
        parked._file = file
        for _ in range(5):
            x = torch.ones(1000) * 2
            lot.park()
            del x
            lot.unpark()
            lot.park()
            lot.unpark()
        assert file._end == 4096
        # One that is freed, whose address another one gets.
        y = torch.ones(1000) * 3
        assert float(y.sum()) == 3000


# --- however a fit ends


class OddError(Exception):
    """An exception of the model or of its caller."""


@contextlib.contextmanager
def leaves_nothing(module: Cached, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    files: list[Any] = []
    create: Callable[..., Any] = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **given: files.append(create(**given)) or files[-1])
    threads = set(walkers())
    yield
    assert set(walkers()) == threads
    assert swapped(module) == []
    assert not _get_current_dispatch_mode_stack()
    assert [file.closed for file in files] == [True]
    cached_is_whole(module)


@pytest.mark.usefixtures("always_parks")
@pytest.mark.parametrize("error", [OddError(), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", ["progress", "first prompt", "last prompt", "later site"])
def test_failed_fit_leaves_nothing_parked(place: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Cached()
    model, runs, calls = TensorModel(module, (16,)), 0, 0

    def on_run(_: object) -> None:
        nonlocal runs
        runs += 1
        module.table = module.table if runs > 2 else None
        if runs - 1 == {"last prompt": 6}.get(place, 99):
            raise error

    def later(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == {"first prompt": 2, "later site": 4}.get(place, 99):
            raise error

    def progress(done: int, *_: object) -> None:
        if place == "progress" and done == 2:
            raise error

    model.on_run = on_run
    with leaves_nothing(module, monkeypatch), contextlib.ExitStack() as stack:
        stack.callback(module.layers[2].register_forward_pre_hook(later).remove)
        with pytest.raises(type(error)) as caught:
            fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=3, memory_budget=1, progress=progress)
    assert caught.value is error


@pytest.mark.usefixtures("always_parks")
def test_model_that_cleans_up_while_it_unwinds_reads_its_tensors() -> None:
    totals: list[float] = []

    class Tidy(Cached):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            finally:
                totals.append(float((x * 0 + 1).mean()))

    def cancel(*_: object) -> None:
        raise OddError

    with pytest.raises(OddError):
        fit(TensorModel(Tidy(), (16,)), SOURCE, TARGET, sites=LAYERS, memory_budget=1, progress=cancel, batch_size=3)
    assert totals == [1.0] * 7


@pytest.mark.usefixtures("always_parks")
def test_full_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TemporaryFile, "write", full)
    with pytest.raises(MapError, match=r"^Cannot write to the folder .* \(No space left on device\); free some space"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, memory_budget=1)


# --- running out of memory


def test_out_of_memory_parks_and_halves_the_batch() -> None:
    model = chain()

    def check(batch: Sequence[str]) -> None:
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.on_run = check
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    assert act_map.record.walk == "exact"
    assert act_map.record.notes == tuple(
        f"out of memory: restarted with {size} prompts at a time, others parked" for size in (8, 4)
    )
    assert_identical(act_map, fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=4))


# --- compiled models


@pytest.mark.usefixtures("always_parks")
def test_compiled_model_runs_uncompiled_while_it_is_parked() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    module = Skipping()
    plain = both(TensorModel(module, (5, 16)), sites=LAYERS)
    compiled: Any = torch.compile(module, backend=counter)
    model = TensorModel(compiled, (5, 16))
    x = model.rows(SOURCE[:3])
    with torch.no_grad():
        compiled(x)
        frames = counter.frame_count
        assert frames > 0
        parked = fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=3, memory_budget=1)
        assert counter.frame_count == frames
        compiled(torch.cat([x, x]))  # another size, which is compiled again
    assert counter.frame_count > frames
    assert_identical(plain, parked)
    torch._dynamo.reset()


def test_models_stay_uncompiled_until_the_last_of_overlapping_fits_ends() -> None:
    counter, x = CompileCounter(), torch.ones(2)
    compiled: Any = torch.compile(lambda x: x + 1, backend=counter)
    one, other = Uncompiled(), Uncompiled()
    one.enter()
    other.enter()
    one.leave()
    compiled(x)
    assert counter.frame_count == 0
    other.leave()
    compiled(x)
    assert counter.frame_count == 1
    torch._dynamo.reset()
