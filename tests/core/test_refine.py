"""Refining a map on a loss: what is learned, what is kept, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from act_core import ActMap, steer
from act_core.architectures import architecture_of
from act_core.components import Component
from act_core.errors import FitError
from act_core.fitting import LossModel, refine
from act_core.fitting.frozen import frozen
from act_core.settings import RefineSettings


class Toy(LossModel[float]):
    """Two linear layers that should return 3 for every input."""

    def __init__(self, module: nn.Module, wanted: float = 3.0) -> None:
        self.module = module
        self.wanted = wanted

    @property
    def components(self) -> Sequence[Component]:
        return (Component("model", self.module, architecture_of(self.module)),)

    def describe(self, sample: float) -> str:
        return str(sample)

    def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
        noise = 0.01 * torch.randn(len(samples), 1, generator=generator)
        return (self.module(torch.tensor(samples)[:, None] + noise) - self.wanted).square().mean()


class Quiet(Toy):
    """Without noise, so that a loss does not depend on how a batch is divided."""

    def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
        return (self.module(torch.tensor(samples)[:, None]) - self.wanted).square().mean()


class Noting(Quiet):
    """Notes every sample that it gets with gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.drawn: list[float] = []

    def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
        if torch.is_grad_enabled():
            self.drawn += samples
        return super().loss(samples, generator)


class Small(Quiet):
    """Runs out of memory with more samples than a few."""

    limit = 3
    most = 0
    limits_checks = False

    def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
        if self.limits_checks or torch.is_grad_enabled():
            if len(samples) > self.limit:
                raise torch.cuda.OutOfMemoryError
            self.most = max(self.most, len(samples))
        return super().loss(samples, generator)


class Faint(Toy):
    """In float16, with a loss so small that its gradient vanishes there."""

    def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
        output = self.module(torch.tensor(samples, dtype=torch.float16)[:, None])
        return 1e-7 * (output.float() - self.wanted).square().mean()


class Detached(Toy):
    """Its loss does not depend on what happens inside."""

    def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
        return super().loss(samples, generator).detach()


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 4))


SAMPLES = [0.1 * n for n in range(10)]


def loss_of(model: Toy) -> float:
    with torch.no_grad():
        return float(model.loss(SAMPLES, torch.Generator().manual_seed(99)))


def test_map_lowers_loss() -> None:
    model = Toy(layers())
    before = loss_of(model)
    act_map = refine(model, SAMPLES, sites="model/*", steps=200, rate=0.05, held_back=0)
    with steer(model.module, act_map):
        after = loss_of(model)
    assert after < 0.1 * before
    assert loss_of(model) == before
    assert act_map.record.fitted_by == "refinement"
    assert act_map.record.target_count == len(SAMPLES)


def test_weights_stay_bit_for_bit() -> None:
    model = Toy(layers())
    kept = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    tensors = dict(model.module.named_parameters())
    refine(model, SAMPLES, sites="model/*", steps=5)
    for name, parameter in model.module.named_parameters():
        assert parameter is tensors[name]
        assert torch.equal(parameter, kept[name])
        assert parameter.requires_grad
        assert parameter.grad is None


def test_same_seed_gives_same_map() -> None:
    one, other = (refine(Toy(layers()), SAMPLES, sites="model/*", steps=10, seed=3) for _ in range(2))
    assert not any(one.difference(other).values())


def test_start_is_kept_if_nothing_is_better() -> None:
    model = Toy(layers())
    start = refine(model, SAMPLES, sites="model/*", steps=400, rate=0.05, held_back=0)
    # A learning rate this high only makes it worse, which the samples held back show.
    act_map = refine(model, SAMPLES, sites="model/*", start=start, steps=10, rate=1.0, held_back=0.5)
    assert max(start.difference(act_map).values()) < 1e-5  # offsets are divided by their scale and multiplied again


def test_few_steps_are_kept_if_they_are_better() -> None:
    act_map = refine(Toy(layers()), SAMPLES, sites="model/*", steps=5, rate=0.05, held_back=0.2)
    assert act_map.record.notes[-1] == "refined for 5 steps on 8 samples; kept the map of step 5"


def test_interrupt_keeps_the_best_so_far() -> None:
    def interrupt(done: int, total: int, state: str) -> None:
        if done == 7:
            raise TimeoutError

    settings = RefineSettings(sites="model/*", steps=50, held_back=0.2)
    act_map = refine(Toy(layers()), SAMPLES, settings, progress=interrupt, keep_on=(TimeoutError,))
    assert act_map.record.notes[-1].startswith("refined for 7 steps on 8 samples, interrupted before step 8 of 50")


def test_interrupt_before_the_first_step_is_raised() -> None:
    class Slow(Toy):
        def loss(self, samples: Sequence[float], generator: torch.Generator) -> Tensor:
            if torch.is_grad_enabled() and len(samples) > 1:
                raise TimeoutError
            return super().loss(samples, generator)

    with pytest.raises(TimeoutError):
        refine(Slow(layers()), SAMPLES, sites="model/*", keep_on=(TimeoutError,))


def test_ends_early_when_samples_held_back_do_not_improve() -> None:
    model = Toy(layers())
    start = refine(model, SAMPLES, sites="model/*", steps=400, rate=0.05, held_back=0)
    steps: list[int] = []
    changes: dict[str, Any] = {"steps": 500, "rate": 1.0, "held_back": 0.5}
    act_map = refine(
        model, SAMPLES, sites="model/*", start=start, progress=lambda done, *_: steps.append(done), **changes
    )
    assert steps[-1] == 30
    assert "the map is as at the start" in act_map.record.notes[-1]


def test_parts_of_a_batch_give_the_same_gradient() -> None:
    """Exact but for rounding: the mean over a batch of 8 is that over its parts, weighted by their sizes."""
    maps: list[ActMap] = []
    for rows in (None, 3):
        model = Quiet(layers())
        model.max_rows = rows
        maps.append(refine(model, SAMPLES, sites="model/*", steps=5, batch_size=8, held_back=0))
    assert max(maps[0].difference(maps[1]).values()) < 1e-4


def test_each_sample_is_drawn_before_any_is_drawn_again() -> None:
    model = Noting(layers())
    refine(model, SAMPLES, sites="model/*", steps=5, batch_size=4, held_back=0)
    drawn = model.drawn[-20:]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == SAMPLES


def test_out_of_memory_halves_the_rows() -> None:
    model = Small(layers())
    refine(model, SAMPLES, sites="model/*", steps=3, batch_size=8, held_back=0)
    assert model.most == 2


def test_out_of_memory_at_a_check_halves_the_rows() -> None:
    model = Small(layers())
    model.limits_checks = True
    refine(model, SAMPLES, sites="model/*", steps=3, held_back=0.5)
    assert model.most == len(SAMPLES) // 4


def test_out_of_memory_with_one_sample_is_an_error() -> None:
    model = Small(layers())
    model.limit = 0
    with pytest.raises(FitError, match="do not fit into memory even for one sample"):
        refine(model, SAMPLES, sites="model/*", steps=3)


def test_half_precision_keeps_small_gradients() -> None:
    """The gradient of this loss is below the smallest float16 number unless the loss is scaled."""
    model = Faint(layers().half())
    act_map = refine(model, SAMPLES, sites="model/*", steps=3, held_back=0)
    moved = [transport.omega - 1 for transport in act_map.transports.values()]
    assert all(bool((gain != 0).any()) for gain in moved)


def test_model_without_gradient_is_refused() -> None:
    with pytest.raises(FitError, match="cannot be differentiated here"):
        refine(Detached(layers()), SAMPLES, sites="model/*")


def test_start_must_fit() -> None:
    start = refine(Toy(layers()), SAMPLES, sites="model/0", steps=1)
    with pytest.raises(FitError, match="none of the sites"):
        refine(Toy(layers()), SAMPLES, sites="model/2", start=start)
    wide = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 4))
    with pytest.raises(FitError, match="8 channels at model/0, the model 5"):
        refine(Toy(wide), SAMPLES, sites="model/*", start=start)


def test_sites_of_the_start_that_are_not_refined_are_noted() -> None:
    start = refine(Toy(layers()), SAMPLES, sites="model/*", steps=1, held_back=0)
    one = refine(Toy(layers()), SAMPLES, sites="model/0", start=start, steps=1, held_back=0)
    assert [site.key for site in one.transports] == ["model/0"]
    left_out = f"; left out {len(start) - 1} of its {len(start)} sites, which were not refined"
    assert one.record.notes[0].endswith(left_out)
    every = refine(Toy(layers()), SAMPLES, sites="model/*", start=start, steps=1, held_back=0)
    assert "left out" not in every.record.notes[0]


def test_error_in_progress_restores_model() -> None:
    model = Toy(layers())

    def fail(done: int, total: int, state: str) -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        refine(model, SAMPLES, sites="model/*", progress=fail)
    assert not any("forward" in module.__dict__ for module in model.module.modules())
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_weights_loaded_in_inference_mode() -> None:
    with torch.inference_mode():
        module = layers()
        weights = list(module.parameters())
        act_map = refine(Toy(module), SAMPLES, sites="model/*", steps=3)
    assert len(act_map) == 3
    assert all(one is other for one, other in zip(module.parameters(), weights, strict=True))


def test_frozen_restores_flags_after_error() -> None:
    layer = nn.Linear(1, 1)
    flags: list[bool] = []

    def fail() -> None:
        with frozen([layer]):
            flags.append(layer.weight.requires_grad)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert flags == [False]
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("samples", "changes", "message"),
    [
        ([0.5], {}, "There is 1 sample; a refinement needs at least two"),
        (SAMPLES, {"wanted": float("nan")}, "not finite"),
        (SAMPLES, {"speed": 1}, "no setting 'speed'"),
        (SAMPLES, {"steps": 0}, "steps is 0"),
        (SAMPLES, {"rate": 0.0}, "rate is 0.0"),
        (SAMPLES, {"sites": "model/nothing"}, "No part of the model matches"),
    ],
)
def test_bad_input_is_refused(samples: list[float], changes: dict[str, Any], message: str) -> None:
    model = Toy(layers(), changes.get("wanted", 3.0))
    settings: dict[str, Any] = {"sites": "model/*", **changes}
    settings.pop("wanted", None)
    with pytest.raises(FitError, match=message):
        refine(model, samples, **settings)
