"""Replicas of a model walk at the same time, and fit the map of a single model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from helpers import TOY, TensorModel, assert_identical, calling_before, chain, mixed, prompts, swapped, walkers

from act_core import fit
from act_core.components import Component
from act_core.fitting import MicroBatch

SOURCE, TARGET = prompts("source", 7), prompts("target", 7)
# For a wait that ends at once unless something is wrong.
SECONDS = 20


class ReplicatedModel(TensorModel):
    """A model with a copy, whose micro-batches go to the two in turn."""

    def __init__(self, single: TensorModel) -> None:
        super().__init__(single.module, single.shape)
        self.copy = deepcopy(single.module)
        self.replicas = ([Component("toy", self.copy, TOY)],)

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        found = super().batches(samples, size)
        for number in range(1, len(found), 2):
            part = samples[number * size : (number + 1) * size]
            found[number] = replace(found[number], run=lambda part=part: self.copy(self.rows(part)), replica=1)
        return found


@pytest.mark.parametrize("settings", [{}, {"support": "observed"}, {"moved": "both"}], ids=str)
@pytest.mark.parametrize("make", [chain, mixed])
def test_replicas_fit_the_map_of_one_model(make: Callable[[], TensorModel], settings: dict[str, Any]) -> None:
    walked = fit(ReplicatedModel(make()), SOURCE, TARGET, sites="toy/*", batch_size=2, **settings)
    assert len(walked) > 2
    assert_identical(walked, fit(make(), SOURCE, TARGET, sites="toy/*", batch_size=2, **settings))


def test_module_that_replicas_share_is_steered_once() -> None:
    model = ReplicatedModel(chain())
    layers: Any = model.copy.layers
    layers[0] = model.module.get_submodule("layers.0")
    walked = fit(model, SOURCE, TARGET, sites="toy/*", batch_size=2)
    assert_identical(walked, fit(chain(), SOURCE, TARGET, sites="toy/*", batch_size=2))


def test_replicas_fit_the_gates_of_one_model() -> None:
    source, target = prompts("source", 12), prompts("target", 12)
    walked = fit(ReplicatedModel(chain()), source, target, sites="toy/*", batch_size=5, support="gated")
    single = fit(chain(), source, target, sites="toy/*", batch_size=5, support="gated")
    for site, transport in single.transports.items():
        assert transport.gate is not None
        own = walked[site.key].gate
        assert own is not None
        assert own.packed().equal(transport.gate.packed())


def test_replicas_run_at_the_same_time() -> None:
    model = ReplicatedModel(chain())
    both = threading.Barrier(2)

    def meet() -> None:
        if threading.current_thread() in walkers():  # not in the dry run
            both.wait(SECONDS)

    with calling_before(model.module, meet), calling_before(model.copy, meet):
        fit(model, SOURCE[:4], TARGET[:4], sites="toy/layers.*", batch_size=2)
    assert not both.broken


@pytest.mark.usefixtures("always_parks")
def test_parked_replicas_run_one_at_a_time() -> None:
    model = ReplicatedModel(chain())
    running, met = threading.Lock(), 0

    def run_alone() -> None:
        nonlocal met
        if not running.acquire(blocking=False):
            met += 1
            return
        time.sleep(0.01)
        running.release()

    with calling_before(model.module, run_alone), calling_before(model.copy, run_alone):
        walked = fit(model, SOURCE, TARGET, sites="toy/layers.*", batch_size=2, memory_budget=1)
        assert met == 0
        fit(model, SOURCE, TARGET, sites="toy/layers.*", batch_size=2)
        assert met > 0  # without a budget, they do meet
    assert_identical(walked, fit(chain(), SOURCE, TARGET, sites="toy/layers.*", batch_size=2))


@pytest.mark.parametrize("failing", ["module", "copy"])
def test_error_in_one_replica_ends_both_and_restores_them(failing: str) -> None:
    model = ReplicatedModel(chain())

    def fail() -> None:
        if threading.current_thread() in walkers():
            raise RuntimeError("a replica broke")

    with calling_before(getattr(model, failing), fail), pytest.raises(RuntimeError, match="a replica broke"):
        fit(model, SOURCE, TARGET, sites="toy/layers.*", batch_size=2)
    assert swapped(model.module) == swapped(model.copy) == []
    assert walkers() == []


def test_interrupt_restores_both_replicas() -> None:
    model = ReplicatedModel(chain())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, SOURCE, TARGET, sites="toy/layers.*", batch_size=2, progress=interrupt)
    assert swapped(model.module) == swapped(model.copy) == []
    assert walkers() == []
