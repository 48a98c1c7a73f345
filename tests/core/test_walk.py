"""The walk of micro-batches past the sites: what each thread inherits, and which sites cannot be fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    MIXED_IN_ORDER,
    MIXED_SITES,
    TensorModel,
    assert_identical,
    calling_before,
    chain,
    keys,
    largest_difference,
    mixed,
    prompts,
    swapped,
    walkers,
)
from torch import Tensor, nn

from act_core import ActMap, MapError, fit
from act_core.discovery import discover
from act_core.fitting import MicroBatch
from act_core.fitting.lockstep import Walk
from act_core.fitting.pooling import Values
from act_core.models.transformers import TransformersModel
from act_core.sites import Site
from act_core.transport import Transport
from benchmarks.lib.rerun import fit_by_rerunning

SOURCE, TARGET = prompts("source", 7), prompts("target", 7)


# --- the walk itself


def walk(model: TensorModel, sites: str, fit_site: Callable[[Any, Any], Transport], size: int = 3) -> None:
    batch = model.batches(SOURCE[:2], 2)[0]
    with torch.no_grad():
        found = discover(model.components, sites, batch.run, 2)
        source, target = (model.batches(side, size) for side in (SOURCE, TARGET))
        moved: set[Any] = {"source"}
        Walk(model.components, found, source, target, moved=moved, keep=None, gated=False, spatial="shift").run(
            fit_site
        )


def test_walk_gathers_both_sides_at_each_site() -> None:
    model, seen = chain(), []

    def fit_site(site: Site, values: dict[str, list[Values]]) -> Transport:
        assert {side: [len(v.pooled) for v in own] for side, own in values.items()} == {
            "source": [3, 3, 1],
            "target": [3, 3, 1],
        }
        assert model.resident == 14
        seen.append(site.key)
        return Transport(torch.ones(site.channels), torch.zeros(site.channels))

    walk(model, "toy/layers.*", fit_site)
    assert seen == ["toy/layers.0", "toy/layers.1", "toy/layers.2"]
    assert model.resident == 0


class NormedTwice(nn.Module):
    """Like text encoders that skip layers: applies the same norm to one result, then to the one that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        used = self.first(x)
        self.norm(used * used)
        return self.last(self.norm(used))


@pytest.mark.parametrize("counts", [0, 1])
def test_component_passes_select_the_pass_that_is_fitted(counts: int) -> None:
    model = TensorModel(NormedTwice(), (4,))
    (component,) = model.components
    model.components[:] = [replace(component, passes={"norm": counts})]
    act_map = fit(model, SOURCE, TARGET, sites="toy/*", estimator="mean", order="simultaneous")
    assert keys(act_map) == ["toy/first", "toy/norm", "toy/last"]
    first, norm = (model.module.get_submodule(name) for name in ("first", "norm"))
    with torch.no_grad():
        used = [first(model.rows(side)) for side in (SOURCE, TARGET)]
        source, target = (norm(x if counts else x * x).mean(0) for x in used)
    # Means of float32 values, in another order.
    assert torch.allclose(act_map["toy/norm"].beta, target - source, atol=1e-6)


def test_site_stands_in_the_order_of_the_pass_that_is_fitted() -> None:
    class NormedBefore(NormedTwice):
        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            return super().forward(x)

    model = TensorModel(NormedBefore(), (4,))
    (component,) = model.components
    for passes, expected in ((0, ["norm", "first", "last"]), (2, ["first", "norm", "last"])):
        model.components[:] = [replace(component, passes={"norm": passes})]
        assert keys(fit(model, SOURCE, TARGET, sites="toy/*")) == [f"toy/{name}" for name in expected]


def test_walk_runs_one_micro_batch_at_a_time() -> None:
    model, inside, most = chain(), 0, 0

    def enter() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)

    def leave(*_: object) -> None:
        nonlocal inside
        inside -= 1

    layer = model.module.get_submodule("layers.1")
    handle = layer.register_forward_hook(leave)
    with calling_before(layer, enter):
        fit(model, SOURCE, TARGET, sites="toy/layers.0, toy/layers.2", batch_size=1)
    handle.remove()
    assert most == 1


def test_walk_ends_all_micro_batches_when_a_site_fails() -> None:
    model, waiting = chain(), []

    def fit_site(*_: object) -> Transport:
        waiting.extend(walkers())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        walk(model, "toy/layers.*", fit_site)
    assert len(waiting) == 6
    assert not walkers()
    assert swapped(model.module) == []
    assert model.resident == 0


def test_walk_stops_at_the_last_site() -> None:
    model, calls = chain(), []
    with calling_before(model.module.get_submodule("layers.2"), lambda: calls.append(1)):
        fit(model, SOURCE, TARGET, sites="toy/layers.[01]")
    assert len(calls) == 1  # the dry run


# --- the caller's modes hold in the workers


def modes() -> tuple[bool, bool, bool, torch.dtype]:
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )


def modes_seen(model: TensorModel) -> set[tuple[bool, bool, bool, torch.dtype]]:
    seen: set[tuple[bool, bool, bool, torch.dtype]] = set()
    with calling_before(model.module, lambda: seen.add(modes())):
        fit(model, SOURCE, TARGET, sites="toy/layers.*", batch_size=3)
    return seen


def test_workers_inherit_inference_mode() -> None:
    with torch.inference_mode():
        assert {(inference, grad) for inference, grad, *_ in modes_seen(chain())} == {(True, False)}
    assert {(inference, grad) for inference, grad, *_ in modes_seen(chain())} == {(False, False)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_workers_inherit_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        assert {(on, to) for *_, on, to in modes_seen(chain())} == {(True, dtype)}
    assert {on for *_, on, _ in modes_seen(chain())} == {False}


def test_workers_inherit_default_device() -> None:
    class OnCpu(TensorModel):
        def rows(self, prompts: Sequence[str]) -> Tensor:
            with torch.device("cpu"):
                return super().rows(prompts)

    model, devices = OnCpu(chain().module, (4,)), set[str]()
    with torch.device("meta"), calling_before(model.module, lambda: devices.add(torch.empty(1).device.type)):
        fit(model, SOURCE, TARGET, sites="toy/layers.*", batch_size=3)
    assert devices == {"meta"}


def test_lockstep_equals_rerunning_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        walked = fit(chain(), SOURCE, TARGET, sites="toy/layers.*", batch_size=3)
        assert_identical(walked, fit_by_rerunning(chain(), SOURCE, TARGET, "toy/layers.*", batch_size=3))
    plain = fit(chain(), SOURCE, TARGET, sites="toy/layers.*", batch_size=3)
    assert largest_difference(walked, plain) > 0


def test_fit_records_no_gradients(llama: TransformersModel) -> None:
    grads: list[bool] = []
    with calling_before(llama.module.model.norm, lambda: grads.append(torch.is_grad_enabled())):
        fit(llama, SOURCE, TARGET, sites="norms", batch_size=3)
    assert grads
    assert not any(grads)


# --- sites that cannot be walked


class Sometimes(nn.Module):
    """Runs its second layer only for some prompts."""

    def __init__(self, skips: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.third(x if self.skips(x) else self.second(x))


@pytest.mark.parametrize("sites", ["toy/*", "toy/first, toy/second"])
def test_site_that_some_prompts_skip_is_named(sites: str) -> None:
    model = TensorModel(Sometimes(lambda x: len(x) == 1), (4,))
    with pytest.raises(MapError, match=r"toy/second|toy/third") as caught:
        fit(model, SOURCE, TARGET, sites=sites, batch_size=2)
    assert "choose other sites" in str(caught.value)
    assert swapped(model.module) == []


def test_site_whose_order_changes_is_named() -> None:
    class Swapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) if len(x) == 2 else self.first(self.second(x))

    with pytest.raises(MapError, match=r"toy/(first|second).*choose other sites"):
        fit(TensorModel(Swapping(), (4,)), SOURCE, TARGET, sites="toy/*", batch_size=3)


def test_site_with_another_number_of_tokens_is_named() -> None:
    class Shorter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)[:, ::2])

    class Masked(TensorModel):
        def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
            mask = torch.ones(size, 6, dtype=torch.bool)
            return [MicroBatch(b.rows, b.run, {"toy": mask[: b.rows]}) for b in super().batches(samples, size)]

    with pytest.raises(MapError, match=r"Site toy/second has 3 tokens where its prompt has 6"):
        fit(Masked(Shorter(), (6, 4)), SOURCE, TARGET, sites="toy/*")


def test_outputs_of_a_tuple_are_fitted_separately() -> None:
    model = mixed()
    act_map: ActMap = fit(model, SOURCE, TARGET, sites=MIXED_SITES, batch_size=2)
    assert keys(act_map) == MIXED_IN_ORDER
    assert not torch.equal(act_map["toy/split#0"].omega, act_map["toy/split#1"].omega)
