"""What is parked and what stays: storages of one micro-batch, and those that micro-batches share."""

from __future__ import annotations

import pytest
import torch
from helpers import TensorModel, assert_identical
from parking_helpers import LAYERS, SOURCE, TARGET, Cached, cached_is_whole
from torch import Tensor

from act_core import fit
from act_core.fitting.parking import Lot, Parking
from act_core.fitting.temporary_file import TemporaryFile

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


def test_address_of_a_storage_that_is_freed_while_parked_keeps_no_place() -> None:
    file = TemporaryFile()
    with Parking() as parked, parked.lot() as lot:
        parked._file = file
        for number in range(50):
            x = torch.ones(1000) * 2
            for _ in range(2):  # the second time, x stays away
                lot.park()
                lot.unpark()
            del x
            y = torch.ones(1000) * number  # likely at its address
            assert float(y.sum()) == 1000 * number
            del y
        assert file._end <= 4 * 4096


# --- what micro-batches share


def test_storage_that_another_micro_batch_has_read_stays() -> None:
    parked = Parking()  # not entered, see `lot`
    mine, other = parked.lot(), parked.lot()
    with mine:
        shared, own = torch.ones(4) * 2, torch.ones(4) * 3
        mine.park()
        assert nbytes(shared, own) == [0, 0]
    with other:
        assert (shared + 1).tolist() == [3, 3, 3, 3]
    with mine:
        mine.unpark()
        assert (shared + own).tolist() == [5, 5, 5, 5]
        mine.park()
        assert nbytes(shared, own) == [16, 0]


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
