"""What `fit` promises: its settings, its budget, its progress, and that it ends cleanly whatever happens."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import pytest
import torch
from helpers import (
    MIXED_IN_ORDER,
    MIXED_SITES,
    Chain,
    TensorModel,
    assert_identical,
    calling_before,
    chain,
    encoded,
    keys,
    largest_difference,
    mixed,
    prompts,
    swapped,
    tensors_of,
    tiny_llama,
    walkers,
)
from torch import Tensor, nn

from act_core import MapError, fit, steer
from act_core.fitting.memory import SCRATCH
from act_core.fitting.pooling import pool
from act_core.models.transformers import TransformersModel

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


# --- record


def test_the_record_says_how_the_map_was_fitted(llama: TransformersModel) -> None:
    settings: dict[str, Any] = {
        "estimator": "gaussian",
        "order": "simultaneous",
        "support": "observed",
        "interval": "pooled",
        "moved": "both",
        "spatial": "pointwise",
        "seed": 7,
    }
    record = fit(llama, SOURCE, TARGET[:4], sites="mlp", **settings).record
    assert {name: getattr(record, name) for name in settings} == settings
    assert (record.source_prompts, record.target_prompts) == (tuple(SOURCE), tuple(TARGET[:4]))
    assert (record.source_count, record.target_count) == (6, 4)
    assert record.walk == "exact"
    assert record.base["language_model"].architecture == "llama"
    assert record.versions["torch"] == torch.__version__
    assert set(record.versions) >= {"torch", "transformers"}
    assert (record.notes, record.patches, record.edits) == ((), (), ())


def test_the_hash_of_the_prompts_tells_lists_apart() -> None:
    def hashed(source: Sequence[str], target: Sequence[str]) -> str:
        return fit(chain(), source, target, sites="toy/layers.0").record.prompts_sha256

    first = hashed(SOURCE, TARGET)
    assert hashed(SOURCE, TARGET) == first
    assert len({first, hashed(TARGET, SOURCE), hashed(SOURCE[:5], TARGET), hashed(SOURCE[::-1], TARGET)}) == 4


def test_maps_that_act_while_another_is_fitted_are_recorded() -> None:
    model = chain()
    first = fit(model, SOURCE, TARGET, sites="toy/layers.0")
    with steer(model.module, first):
        second = fit(model, SOURCE, TARGET, sites="toy/layers.1")
    assert second.record.patches == ("The map",)
    assert swapped(model.module) == []
    assert largest_difference(second, fit(model, SOURCE, TARGET, sites="toy/layers.1")) > 0


def test_the_same_fit_gives_the_same_map(llama: TransformersModel) -> None:
    one, other = (fit(llama, SOURCE, TARGET, sites="all", batch_size=4) for _ in range(2))
    assert_identical(one, other)


# --- settings


def test_simultaneous_sites_are_fitted_on_the_untouched_model() -> None:
    model = mixed()
    together = fit(model, SOURCE, TARGET, sites=MIXED_SITES, order="simultaneous")
    assert keys(together) == MIXED_IN_ORDER
    for key in MIXED_IN_ORDER:  # alone, a site is the first one, and nothing acts before it
        alone = fit(model, SOURCE, TARGET, sites=key)
        assert torch.equal(alone[key].omega, together[key].omega)
        assert torch.equal(alone[key].beta, together[key].beta)


def outputs(model: TensorModel, name: str, side: Sequence[str]) -> Tensor:
    """What a submodule of the untouched model returns."""
    seen: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model.module(model.rows(side))
    handle.remove()
    return seen[0]


def test_token_intervals_span_the_single_values_of_the_source() -> None:
    model = TensorModel(Chain(), (5, 4))
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, support="observed", batch_size=2)
    values = outputs(model, "layers.0", SOURCE)
    low, high = act_map["toy/layers.0"].low, act_map["toy/layers.0"].high
    assert low is not None
    assert high is not None
    # Batches of another size may be summed in another order.
    assert torch.allclose(low, values.amin((0, 1)), rtol=1e-5)
    assert torch.allclose(high, values.amax((0, 1)), rtol=1e-5)


def test_pooled_intervals_span_the_means_of_the_source() -> None:
    model = TensorModel(Chain(), (5, 4))
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, support="observed", interval="pooled", batch_size=2)
    pooled = pool(outputs(model, "layers.0", SOURCE), "tokens", None)
    low, high = act_map["toy/layers.0"].low, act_map["toy/layers.0"].high
    assert low is not None
    assert high is not None
    assert torch.allclose(low, pooled.amin(0), rtol=1e-5)  # as above
    assert torch.allclose(high, pooled.amax(0), rtol=1e-5)


@pytest.mark.parametrize("interval", ["token", "pooled"])
def test_feature_maps_that_shift_their_mean_have_pooled_intervals(interval: Any) -> None:
    model = mixed()
    pooled = pool(outputs(model, "conv", SOURCE), "spatial", None)
    shifted = fit(model, SOURCE, TARGET, sites="toy/conv", support="observed", interval=interval)
    assert shifted["toy/conv"].high is not None
    assert torch.allclose(shifted["toy/conv"].high, pooled.amax(0), rtol=1e-5)  # float32 sums of 25 values


def test_feature_maps_that_are_moved_pointwise_have_token_intervals() -> None:
    model = mixed()
    act_map = fit(model, SOURCE, TARGET, sites="toy/conv", support="observed", spatial="pointwise")
    values = outputs(model, "conv", SOURCE)
    assert act_map["toy/conv"].high is not None
    assert torch.allclose(act_map["toy/conv"].high, values.amax((0, 2, 3)), rtol=1e-5)  # as above


def test_unbounded_maps_have_no_interval() -> None:
    assert not any(t.bounded for t in fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES).transports.values())


@pytest.mark.parametrize("name", ["estimator", "order", "support", "interval", "moved", "spatial"])
def test_an_unknown_setting_is_refused_with_the_choices(name: str) -> None:
    settings: dict[str, Any] = {name: "sideways"}
    with pytest.raises(MapError, match=rf"no {name} 'sideways'; choose one of \w+, \w+"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, **settings)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(MapError, match=f"batch size is {size}"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=size)


def test_sites_that_fit_nothing_name_the_closest() -> None:
    with pytest.raises(MapError, match=r"closest names are toy/layers\.\*"):
        fit(chain(), SOURCE, TARGET, sites="toy/layer.1")


# --- prompts


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "There are 0 {side} prompts"),
        (["one"], "There are 1 {side} prompts"),
        (["one", ""], "Number 2 of the {side} prompts is empty"),
        ([" \n", "one"], "Number 1 of the {side} prompts is empty"),
        ("one prompt", "The {side} prompts are one string"),
    ],
)
def test_prompts_that_cannot_be_fitted_are_refused(side: str, bad: Any, reason: str) -> None:
    sides: dict[str, Any] = {"source": SOURCE, "target": TARGET, side: bad}
    with pytest.raises(MapError, match=reason.format(side=side)):
        fit(chain(), **sides, sites=LAYERS)


def test_identical_sides_are_refused_in_any_order() -> None:
    with pytest.raises(MapError, match="nothing to fit"):
        fit(chain(), SOURCE, SOURCE[::-1], sites=LAYERS)


def test_prompts_may_be_repeated_and_numbers_may_differ() -> None:
    assert len(fit(chain(), [*SOURCE, SOURCE[0]], TARGET[:2], sites=LAYERS)) == 3


# --- progress


def test_progress_rises_to_the_total_in_the_callers_thread() -> None:
    calls: list[tuple[int, int, str]] = []
    threads: set[threading.Thread] = set()

    def progress(done: int, total: int, site: str) -> None:
        threads.add(threading.current_thread())
        calls.append((done, total, site))

    fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES, batch_size=2, progress=progress)
    assert calls == [(i, 5, key) for i, key in enumerate(MIXED_IN_ORDER, start=1)]
    assert threads == {threading.current_thread()}


def test_progress_counts_all_groups_of_a_streamed_fit() -> None:
    model, budget = long_prompts(), streaming_budget()
    calls: list[tuple[int, int]] = []
    fit(model, MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=budget, progress=lambda *c: calls.append(c[:2]))
    total = calls[0][1]
    assert total > 3
    assert total % 3 == 0
    assert calls == [(done, total) for done in range(1, total + 1)]


# --- memory: streamed fits

MANY_SOURCE, MANY_TARGET = prompts("source", 30), prompts("target", 30)


class LongPrompts(TensorModel):
    """30 KiB an activation, so that some dozens of prompts take more than a mebibyte."""

    def rows(self, prompts: Sequence[str]) -> Tensor:
        tokens = torch.stack([encoded(f"tokens of {prompt}", (480, 16)) for prompt in prompts])
        return torch.stack([encoded(prompt, (1, 16)) for prompt in prompts]) + 0.3 * tokens


def long_prompts() -> TensorModel:
    return LongPrompts(Chain(channels=16), ())


def streaming_budget() -> int:
    return SCRATCH + (2 << 20)


def test_a_large_budget_changes_nothing() -> None:
    free = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, batch_size=8)
    ample = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, batch_size=8, memory_budget=1 << 30)
    assert ample.record.walk == "exact"
    assert_identical(free, ample)


def test_a_small_budget_streams_the_prompts_and_says_so() -> None:
    exact = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS)
    streamed = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=streaming_budget())
    assert streamed.record.walk == "streamed"
    first, *rest = keys(exact)
    # At the first site nothing acts upstream: the same values, in other batches and another order.
    assert largest_difference(exact.restrict(first), streamed.restrict(first)) < 1e-4
    for key in rest:
        one, other, statistics = exact[key], streamed[key], exact[key].statistics
        assert statistics is not None
        # The first groups walk with maps of eight prompts a side, whose means err by a third of a deviation.
        shift = (other.apply(statistics.source_mean) - one.apply(statistics.source_mean)) / statistics.source_std
        assert float(shift.abs().median()) < 0.5
        assert float((other.omega - one.omega).norm() / one.omega.norm()) < 0.25


def test_a_streamed_fit_is_determined_by_its_seed() -> None:
    maps = [
        fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=streaming_budget(), seed=seed)
        for seed in (3, 3, 4)
    ]
    assert_identical(maps[0], maps[1])
    assert largest_difference(maps[0], maps[2]) > 0
    assert [m.record.seed for m in maps] == [3, 3, 4]


def test_a_streamed_fit_holds_no_more_prompts_than_fit() -> None:
    model, most = long_prompts(), 0

    def note(_: object) -> None:
        nonlocal most
        most = max(most, model.resident)

    model.on_run = note
    fit(model, MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=streaming_budget())
    assert 4 <= most < 60
    assert most * 480 * 16 * 4 <= streaming_budget() - SCRATCH  # one activation of each


def test_a_simultaneous_fit_in_groups_is_still_exact() -> None:
    settings: dict[str, Any] = {"sites": LAYERS, "order": "simultaneous", "support": "observed"}
    free = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, **settings)
    grouped = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, memory_budget=streaming_budget(), **settings)
    assert grouped.record.walk == "exact"
    assert largest_difference(free, grouped) < 1e-4  # other batches, summed in another order
    for key in keys(free):
        for one, other in zip(tensors_of(free[key]), tensors_of(grouped[key]), strict=True):
            assert one is not None
            assert other is not None
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)  # as above


def test_a_budget_that_is_too_small_names_what_it_takes_and_that_is_enough() -> None:
    with pytest.raises(MapError, match=r"budget of 0 MiB is too small for 60 prompts and 3 sites") as caught:
        fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=100_000)
    least = int(re.findall(r"at least (\d+) MiB", str(caught.value))[0])
    fitted = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=least << 20)
    assert len(fitted) == 3


@pytest.mark.parametrize("many", ["source", "target"])
def test_a_streamed_fit_takes_sides_of_very_different_size(many: str) -> None:
    sides: dict[str, Any] = {"source": MANY_SOURCE[:2], "target": MANY_TARGET[:2], many: prompts(many, 58)}
    act_map = fit(long_prompts(), **sides, sites=LAYERS, memory_budget=streaming_budget())
    assert act_map.record.walk == "streamed"
    exact = fit(long_prompts(), **sides, sites="toy/layers.0")
    assert largest_difference(exact, act_map.restrict("toy/layers.0")) < 1e-4  # as above


def test_a_budget_covers_a_language_model_too(llama: TransformersModel) -> None:
    source, target = ([text * 8 for text in side] for side in (MANY_SOURCE, MANY_TARGET))
    streamed = fit(llama, source, target, sites="attention", memory_budget=SCRATCH + (3 << 20))
    assert streamed.record.walk == "streamed"


def test_the_progress_callback_may_run_the_model_itself() -> None:
    """As a preview does; what it runs is neither measured nor moved."""
    model, plain, previews = chain(), fit(chain(), SOURCE, TARGET, sites=LAYERS), []
    preview = model.batches(SOURCE, len(SOURCE))[0]
    untouched = cast("torch.Tensor", preview.run())
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, progress=lambda *_: previews.append(preview.run()))
    assert max(act_map.difference(plain).values()) == 0
    assert len(previews) == len(act_map)
    assert all(torch.equal(shown, untouched) for shown in previews)


# --- memory: running out of it


class Small(TensorModel):
    """Raises as CUDA does when too many prompts are under way, or too many run in one batch."""

    def __init__(self, resident: int = 10**6, rows: int = 10**6) -> None:
        super().__init__(Chain(), (4,))
        self.attempts = 0

        def check(prompts: Sequence[str]) -> None:
            if self.resident > resident or len(prompts) > rows:
                self.attempts += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        self.on_run = check


@pytest.mark.parametrize("limits", [{"resident": 6}, {"rows": 3}, {"resident": 7, "rows": 2}])
def test_out_of_memory_starts_again_in_smaller_groups_and_says_so(
    limits: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    model = Small(**limits)
    with caplog.at_level(logging.WARNING, "act_core"):
        act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    assert model.attempts >= 1
    assert len(act_map.record.notes) == model.attempts
    assert all("out of memory: started again with" in note for note in act_map.record.notes)
    assert len(caplog.records) == model.attempts
    assert act_map.record.walk == "streamed"
    exact = fit(chain(), SOURCE, TARGET, sites="toy/layers.0")
    assert largest_difference(exact, act_map.restrict("toy/layers.0")) < 1e-4  # the same values in other batches


@pytest.mark.parametrize("resident", [4, 5])
def test_a_fit_that_fits_two_prompts_a_side_succeeds(resident: int) -> None:
    assert len(fit(Small(resident), SOURCE, TARGET, sites=LAYERS)) == 3


def test_a_fit_that_never_fits_is_refused() -> None:
    with pytest.raises(MapError, match="out of memory even with two prompts a side"):
        fit(Small(resident=3), SOURCE, TARGET, sites=LAYERS)


def test_a_model_that_cannot_even_run_two_prompts_is_refused() -> None:
    with pytest.raises(MapError, match="memory"):
        fit(Small(resident=0), SOURCE, TARGET, sites=LAYERS)


# --- whatever ends a fit, it ends cleanly


class OddError(Exception):
    """Something that only the model knows."""


@contextlib.contextmanager
def ends_cleanly(model: TensorModel) -> Generator[None]:
    before = {name: dict(part.__dict__) for name, part in model.module.named_modules()}
    threads = set(walkers())
    yield
    assert set(walkers()) == threads
    assert swapped(model.module) == []
    assert before == {name: dict(part.__dict__) for name, part in model.module.named_modules()}
    assert model.resident == 0


FAILURES = [OddError("odd"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MapError("mine")]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("prompt", [SOURCE[0], SOURCE[3], TARGET[5]], ids=["first", "middle", "last"])
def test_an_error_in_one_micro_batch_ends_all_and_is_raised_once(error: BaseException, prompt: str) -> None:
    model = chain()

    def fail(batch: Sequence[str]) -> None:
        if batch == [prompt]:
            raise error

    model.on_run = fail
    with ends_cleanly(model), pytest.raises(type(error)) as caught:
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)
    assert caught.value is error


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_an_error_deep_in_the_walk_is_the_very_error_that_is_raised(error: BaseException) -> None:
    model, calls = chain(), 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # the dry run, and then in the midst of the twelve micro-batches
            raise error

    with (
        ends_cleanly(model),
        calling_before(model.module.get_submodule("layers.1"), fail),
        pytest.raises(type(error)) as caught,
    ):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)
    assert caught.value is error
    assert calls == 8


@pytest.mark.parametrize("at", [1, 2, 3])
def test_cancelling_from_the_callback_ends_the_fit(at: int) -> None:
    model, error = chain(), OddError("cancelled")

    def cancel(done: int, *_: object) -> None:
        if done == at:
            raise error

    with ends_cleanly(model), pytest.raises(OddError) as caught:
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=2, progress=cancel)
    assert caught.value is error


def test_an_interrupt_from_the_keyboard_ends_the_fit() -> None:
    model = chain()

    def interrupt(batch: Sequence[str]) -> None:
        if SOURCE[3] in batch and len(batch) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    model.on_run = interrupt
    with ends_cleanly(model), pytest.raises(KeyboardInterrupt):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)


def test_when_no_more_threads_can_be_started_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model, started, start = chain(), 0, threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        nonlocal started
        started += thread.name == "act-walk"
        if started > 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with ends_cleanly(model), pytest.raises(RuntimeError, match="can't start new thread"):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)


def test_a_model_that_swallows_exceptions_cannot_keep_a_micro_batch_alive() -> None:
    class Swallowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                with contextlib.suppress(Exception):
                    x = layer(x)
            return x

    model = TensorModel(Swallowing(), (4,))

    def cancel(*_: object) -> None:
        raise OddError

    with ends_cleanly(model), pytest.raises(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=2, progress=cancel)


def test_after_a_failed_fit_the_next_one_succeeds() -> None:
    model = chain()
    expected = fit(chain(), SOURCE, TARGET, sites=LAYERS)

    def fail(*_: object) -> None:
        raise OddError

    with pytest.raises(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, progress=fail)
    assert_identical(fit(model, SOURCE, TARGET, sites=LAYERS), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_that_somebody_else_had_put_there_is_the_very_same_afterwards(fails: bool) -> None:
    model, calls = chain(), []
    layer = model.module.get_submodule("layers.1")
    original = layer.forward

    def theirs(x: Tensor) -> Tensor:
        calls.append(1)
        return original(x) * 2

    def progress(done: int, *_: object) -> None:
        if fails and done == 2:
            raise OddError

    layer.__dict__["forward"] = theirs
    with contextlib.suppress(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, progress=progress)
    assert calls
    assert layer.__dict__["forward"] is theirs
    assert swapped(model.module) == ["layers.1"]


def test_a_fit_leaves_weights_mode_and_gradients_as_they_were(llama: TransformersModel) -> None:
    module = llama.module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(llama, SOURCE, TARGET, sites="all", batch_size=3)
    assert module.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- activations


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_their_site(value: float) -> None:
    model = chain()
    layer = model.module.get_submodule("layers.1")
    assert isinstance(layer.bias, Tensor)
    layer.bias.data[2] = value
    with ends_cleanly(model), pytest.raises(MapError, match=r"At site toy/layers\.1: .*NaN or infinite"):
        fit(model, SOURCE, TARGET, sites=LAYERS)


def test_channels_that_do_not_vary_fall_back_and_are_counted() -> None:
    model = chain()
    layer = model.module.get_submodule("layers.0")
    assert isinstance(layer.weight, Tensor)
    layer.weight.data[1] = 0
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    assert act_map["toy/layers.0"].fallbacks == 1
    assert act_map.fallbacks >= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_fitted_close_to_the_exact_map(dtype: torch.dtype) -> None:
    exact, half = (fit(tiny_llama(d), SOURCE, TARGET, sites="norms") for d in (torch.float32, dtype))
    for key in keys(exact):
        assert half[key].omega.dtype == torch.float32
        # Rounding of each layer (bfloat16: 0.4 percent) adds up, and the slopes of six prompts amplify it.
        assert float((half[key].omega - exact[key].omega).norm() / exact[key].omega.norm()) < 0.2


@pytest.mark.parametrize("support", ["unbounded", "observed"])
def test_maps_fitted_in_inference_mode_can_be_used_outside(support: Any, llama: TransformersModel) -> None:
    with torch.inference_mode():
        act_map = fit(llama, SOURCE, TARGET, sites="norms", support=support)
    kept = [t for transport in act_map.transports.values() for t in tensors_of(transport) if t is not None]
    assert not any(t.is_inference() for t in kept)
    batch = llama.batches(SOURCE[:1], 1)[0]
    with steer(llama.module, act_map):
        hidden: Any = batch.run()
        hidden.last_hidden_state.sum().backward()
    assert llama.module.model.embed_tokens.weight.grad.isfinite().all()


def test_compiled_parts_are_fitted_under_their_own_names() -> None:
    plain, compiled = mixed(), mixed()
    parts: Any = compiled.module
    parts.split = torch.compile(parts.split, backend="eager")
    assert_identical(
        fit(compiled, SOURCE, TARGET, sites=MIXED_SITES, batch_size=3),
        fit(plain, SOURCE, TARGET, sites=MIXED_SITES, batch_size=3),
    )


def test_an_adapter_needs_only_components_and_batches() -> None:
    class Adapter:
        def __init__(self) -> None:
            self.inner = chain()
            self.components = self.inner.components
            self.batches: Callable[..., Any] = self.inner.batches

    assert len(fit(Adapter(), SOURCE, TARGET, sites=LAYERS)) == 3


def test_encoded_prompts_are_distinct() -> None:
    """The other tests rely on it."""
    rows = [encoded(prompt, (4,)) for prompt in (*SOURCE, *TARGET)]
    assert len({tuple(row.tolist()) for row in rows}) == 12
