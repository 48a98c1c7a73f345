"""Fitting all transports at once: what it reaches, what it drops, and that nothing else changes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from helpers import (
    GLAD,
    SAD,
    TensorModel,
    assert_identical,
    chain,
    largest_difference,
    prompts,
    swapped,
    tiny_llama,
    walkers,
)
from pipelines import one_encoder
from torch import Tensor, nn

from act_core import ActMap, fit, load_map, save_map, steer
from act_core.coupling import TargetQuantiles, coupling
from act_core.errors import FitError, NotDifferentiableError
from act_core.fitting import end_to_end
from act_core.fitting.measured_sites import MeasuredSites
from act_core.fitting.memory import BatchPlan, SampleMemory
from act_core.models.diffusers import DiffusersModel
from act_core.settings import FitSettings, changed
from act_core.transport import fit_transport

LAYERS = "toy/layers.*"
SOURCE, TARGET = prompts("source", 12), prompts("target", 10)
HELD_OUT = prompts("source", 40)[12:], prompts("target", 40)[10:]
SHORT = FitSettings(sites=LAYERS, estimator="end_to_end", steps=5)


def distance(model: TensorModel, act_map: ActMap | None) -> float:
    """Mean over sites of the squared Wasserstein-2 distance on samples that were held out."""

    def at_sites(side: list[str]) -> list[Tensor]:
        found: list[Tensor] = []
        layers: Any = model.module.layers
        hooks = [layer.register_forward_hook(lambda *given: found.append(given[2])) for layer in layers]
        with torch.no_grad():
            model.module(model.rows(side))
        for hook in hooks:
            hook.remove()
        return found

    goal = at_sites(HELD_OUT[1])
    if act_map is None:
        moved = at_sites(HELD_OUT[0])
    else:
        with steer(model.module, act_map):
            moved = at_sites(HELD_OUT[0])
    pairs = zip(goal, moved, strict=True)
    return sum(float(TargetQuantiles(b, len(a)).distances(a).mean()) for b, a in pairs) / len(goal)


def test_coupling_gives_exact_distance() -> None:
    """Between two steps functions: with equal numbers that of sorted values, else on their common refinement."""
    a, b = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).split(3)
    expected = (a.sort(0).values - b.sort(0).values).square().mean(0)
    torch.testing.assert_close(TargetQuantiles(b, 3).distances(a), expected)
    # Repeating all values changes no quantile function.
    torch.testing.assert_close(TargetQuantiles(b.repeat(2, 1), 3).distances(a), expected)
    torch.testing.assert_close(TargetQuantiles(b, 6).distances(a.repeat(2, 1)), expected)
    assert int(coupling(3, 4).widths.sum()) == 12


def test_reaches_target_better_than_linear_on_held_out_samples() -> None:
    model = chain()
    linear = fit(model, SOURCE, TARGET, sites=LAYERS)
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, estimator="end_to_end", sparsity=0.3)
    assert distance(model, act_map) < 0.97 * distance(model, linear)
    assert distance(model, linear) < distance(model, None)


def test_record_and_file(tmp_path: Path) -> None:
    act_map = fit(chain(), SOURCE, TARGET, SHORT)
    assert (act_map.record.estimator, act_map.record.fitted_by) == ("end_to_end", "transport")
    assert act_map.record.notes[0].startswith("5 steps end to end, from 0.")
    assert all(transport.effect for transport in act_map.transports.values())
    loaded = load_map(save_map(act_map, tmp_path / "map.safetensors"))
    assert list(loaded.transports) == list(act_map.transports)
    assert largest_difference(loaded, act_map) == 0
    assert loaded.record == act_map.record


def test_sparsity_drops_sites() -> None:
    act_map = fit(chain(), SOURCE, TARGET, SHORT, steps=60, sparsity=0.3)
    assert 0 < len(act_map) < 3
    assert f"sparsity 0.3 dropped {3 - len(act_map)} of 3 sites" in act_map.record.notes[0]
    with pytest.raises(FitError, match="A sparsity of 50 drops all sites; choose a lower one"):
        fit(chain(), SOURCE, TARGET, SHORT, sparsity=50)


def test_weights_and_gradients_stay() -> None:
    model = chain()
    kept = {name: (tensor, tensor.clone()) for name, tensor in model.module.named_parameters()}
    fit(model, SOURCE, TARGET, SHORT)
    for name, parameter in model.module.named_parameters():
        assert parameter is kept[name][0]
        assert torch.equal(parameter, kept[name][1])
        assert parameter.requires_grad
        assert parameter.grad is None
    assert swapped(model.module) == []


def test_same_seed_gives_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "STEP_SAMPLES", 5)  # so that samples take turns
    one, other, third = (fit(chain(), SOURCE, TARGET, SHORT, seed=seed) for seed in (3, 3, 4))
    assert_identical(one, other)
    assert largest_difference(one, third) > 0


def test_micro_batches_and_checkpoints_give_the_same_map() -> None:
    """The loss is that of all samples, however few of them run together; Adam enlarges rounding of tiny gradients."""
    whole = fit(chain(), SOURCE, TARGET, SHORT)
    parts = fit(chain(), SOURCE, TARGET, SHORT, batch_size=5)
    budget = fit(chain(), SOURCE, TARGET, SHORT, batch_size=5, memory_budget=1 << 30)
    assert largest_difference(whole, parts) < 0.01  # after five steps of 0.05
    assert_identical(parts, budget)


def test_budget_that_is_too_small() -> None:
    model = tiny_llama(layers=1, context=4096)
    source, target = ([text * 40 for text in side] for side in (SAD, GLAD))
    with pytest.raises(FitError, match=r"A memory budget of \d+ MiB is too small"):
        fit(model, source, target, estimator="end_to_end", steps=1, memory_budget=73 << 20)


def test_out_of_memory_checkpoints_then_halves() -> None:
    model, most = chain(), 0

    def run(batch: Any) -> None:
        nonlocal most
        if torch.is_grad_enabled():
            if len(batch) > 4:
                raise torch.cuda.OutOfMemoryError
            most = max(most, len(batch))

    model.on_run = run
    fit(model, SOURCE, TARGET, SHORT)
    assert most == 3


def test_out_of_memory_without_gradients_uses_the_batches_of_the_walk() -> None:
    model, failed = chain(), 0

    def run(batch: Any) -> None:
        nonlocal failed
        if len(batch) > 4:
            failed += 1
            raise torch.cuda.OutOfMemoryError

    model.on_run = run
    act_map = fit(model, SOURCE, TARGET, SHORT)
    restarts = sum("restarted" in note for note in act_map.record.notes)
    assert failed == restarts > 0


def test_budget_holds_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleMemory, "plan", lambda *_: BatchPlan(22, 3))
    model, most = chain(), 0

    def run(batch: Any) -> None:
        nonlocal most
        most = max(most, len(batch))

    model.on_run = run
    fit(model, SOURCE, TARGET, SHORT, memory_budget=1 << 30)
    assert most == 3


def test_out_of_memory_after_the_walk_halves_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, limit = chain(), 100

    def measured(*args: Any) -> MeasuredSites:
        nonlocal limit
        limit = 4
        return MeasuredSites(*args)

    def fail(_: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > limit:
            raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(end_to_end, "MeasuredSites", measured)
    layers: Any = model.module.layers
    layers[1].register_forward_pre_hook(fail)  # after the first site has been measured
    halved = fit(model, SOURCE, TARGET, SHORT)
    assert halved.record.notes == fit(chain(), SOURCE, TARGET, SHORT).record.notes  # with the same distances
    limit = 0
    with pytest.raises(FitError, match="out of memory"):
        fit(model, SOURCE, TARGET, SHORT)


@pytest.mark.usefixtures("default_handler")
@pytest.mark.parametrize("at", [0, 2])
def test_interrupt_restores_model(at: int) -> None:
    model = chain()

    def interrupt(done: int, total: int, state: str) -> None:
        assert total == 5
        assert state.startswith("distance 0." if done else "toy/layers.")
        if done == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(model, SOURCE, TARGET, SHORT, progress=interrupt)
    assert swapped(model.module) == []
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert torch.is_grad_enabled()
    assert walkers() == []
    fit(model, SOURCE, TARGET, SHORT)  # it can be fitted again


def test_error_of_the_model_is_raised_unchanged() -> None:
    model = chain()

    def fail(batch: Any) -> None:
        if torch.is_grad_enabled():
            raise ZeroDivisionError

    model.on_run = fail
    with pytest.raises(ZeroDivisionError):
        fit(model, SOURCE, TARGET, SHORT)
    assert swapped(model.module) == []


def test_model_without_gradient_is_refused() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.layers[0](x)

    with pytest.raises(NotDifferentiableError, match="no map can be fitted end to end"):
        fit(TensorModel(Detached(), (4,)), SOURCE, TARGET, SHORT)


def test_language_model_in_inference_mode() -> None:
    model = tiny_llama()
    with torch.inference_mode():
        act_map = fit(model, SAD, GLAD, estimator="end_to_end", steps=3)
    with model.steer(act_map):
        steered = model.generate(["It is"], max_new_tokens=4, temperature=0)
    assert steered


def test_pipeline_with_text_encoder() -> None:
    model = DiffusersModel(one_encoder(), size=(16, 16))
    source, target = ["a cat", "a dog", "a cow"], ["a red cat", "a red dog", "a red cow"]
    act_map = fit(model, source, target, estimator="end_to_end", steps=8)
    assert len(act_map.components) == 2
    note = next(note for note in act_map.record.notes if "end to end" in note)
    before, after = (float(part) for part in note.split()[6:9:2])
    assert after < before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moved": "both"}, "end_to_end needs moved source, not both"),
        ({"order": "simultaneous"}, "end_to_end needs order causal, not simultaneous"),
        ({"support": "gated"}, "end_to_end needs support unbounded, not gated"),
        ({"steps": 0}, "steps is 0"),
        ({"sparsity": -1}, "sparsity is -1; it must be a number from 0 to 100"),
        ({"estimator": "mean", "sparsity": 0.1}, "sparsity has no effect on the estimator mean"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FitError, match=message):
        changed(FitSettings(estimator="end_to_end"), changes)


def test_bare_values_have_no_end_to_end_transport() -> None:
    with pytest.raises(FitError, match="choose one of linear, mean, gaussian, project"):
        fit_transport(torch.ones(2, 1), torch.ones(2, 1), "end_to_end")  # pyright: ignore[reportArgumentType]


def test_command_line(run: Run, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    out = tmp_path / "map.safetensors"
    command = ("fit", "--model", tiny, "--prompts", prompt_set, "--out", out, "--steps", 3)
    status, text, _ = run(*command, "--estimator", "end_to_end", "--sparsity", "0.01", "--memory", 900)
    assert status == 0
    assert "Note: 3 steps end to end" in text
    assert load_map(out).record.estimator == "end_to_end"
    status, _, error = run(*command, "--overwrite")
    assert status == 2
    assert "--steps is for pictures" in error
