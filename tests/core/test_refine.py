"""Refining a map on a loss: what is learned, what is kept, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from act_core import steer
from act_core.architectures import architecture_of
from act_core.components import Component
from act_core.errors import FitError
from act_core.fitting import LossModel, refine
from act_core.fitting.frozen import frozen


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


def test_stop_keeps_the_best_so_far() -> None:
    steps: list[int] = []
    act_map = refine(
        Toy(layers()),
        SAMPLES,
        sites="model/*",
        steps=50,
        stop=lambda: len(steps) >= 6,
        progress=lambda done, _total, _state: steps.append(done),
    )
    assert steps == list(range(1, 8))
    assert act_map.record.notes[-1] == "refined for 7 steps on 8 samples"


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
        ([0.5], {}, "at least two"),
        (SAMPLES, {"wanted": float("nan")}, "not finite"),
        (SAMPLES, {"speed": 1}, "no setting 'speed'"),
        (SAMPLES, {"steps": 0}, "steps is 0"),
        (SAMPLES, {"rate": -1.0}, "rate is -1.0"),
        (SAMPLES, {"sites": "model/nothing"}, "nothing"),
    ],
)
def test_bad_input_is_refused(samples: list[float], changes: dict[str, Any], message: str) -> None:
    model = Toy(layers(), changes.get("wanted", 3.0))
    settings: dict[str, Any] = {"sites": "model/*", **changes}
    settings.pop("wanted", None)
    with pytest.raises(FitError, match=message):
        refine(model, samples, **settings)
