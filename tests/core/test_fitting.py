"""The fit: its record, settings, progress and activations."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from helpers import (
    MIXED_IN_ORDER,
    MIXED_SITES,
    Chain,
    TensorModel,
    assert_identical,
    chain,
    encoded,
    keys,
    largest_difference,
    mixed,
    prompts,
    swapped,
    tensors_of,
    tiny_llama,
)
from torch import Tensor

from act_core import fit, steer
from act_core.fitting.pooling import pool
from act_core.models.transformers import TransformersModel

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


# --- record


def test_record_keeps_settings_prompts_and_versions(llama: TransformersModel) -> None:
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


def test_record_hash_differs_for_different_prompts() -> None:
    def hashed(source: Sequence[str], target: Sequence[str]) -> str:
        return fit(chain(), source, target, sites="toy/layers.0").record.prompts_sha256

    first = hashed(SOURCE, TARGET)
    assert hashed(SOURCE, TARGET) == first
    assert len({first, hashed(TARGET, SOURCE), hashed(SOURCE[:5], TARGET), hashed(SOURCE[::-1], TARGET)}) == 4


def test_record_names_maps_that_steer_during_the_fit() -> None:
    model = chain()
    first = fit(model, SOURCE, TARGET, sites="toy/layers.0")
    with steer(model.module, first):
        second = fit(model, SOURCE, TARGET, sites="toy/layers.1")
    assert second.record.patches == ("The map",)
    assert swapped(model.module) == []
    assert largest_difference(second, fit(model, SOURCE, TARGET, sites="toy/layers.1")) > 0


def test_fit_is_deterministic(llama: TransformersModel) -> None:
    one, other = (fit(llama, SOURCE, TARGET, sites="all", batch_size=4) for _ in range(2))
    assert_identical(one, other)


# --- settings


def test_simultaneous_fit_uses_the_unsteered_model() -> None:
    model = mixed()
    together = fit(model, SOURCE, TARGET, sites=MIXED_SITES, order="simultaneous")
    assert keys(together) == MIXED_IN_ORDER
    for key in MIXED_IN_ORDER:  # alone, a site is the first one, and nothing acts before it
        alone = fit(model, SOURCE, TARGET, sites=key)
        assert torch.equal(alone[key].omega, together[key].omega)
        assert torch.equal(alone[key].beta, together[key].beta)


def outputs(model: TensorModel, name: str, side: Sequence[str]) -> Tensor:
    """The output of a submodule of the unsteered model."""
    seen: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model.module(model.rows(side))
    handle.remove()
    return seen[0]


def test_token_interval_spans_single_source_values() -> None:
    model = TensorModel(Chain(), (5, 4))
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, support="observed", batch_size=2)
    values = outputs(model, "layers.0", SOURCE)
    low, high = act_map["toy/layers.0"].low, act_map["toy/layers.0"].high
    assert low is not None
    assert high is not None
    # Batches of another size may be summed in another order.
    assert torch.allclose(low, values.amin((0, 1)), rtol=1e-5)
    assert torch.allclose(high, values.amax((0, 1)), rtol=1e-5)


def test_pooled_interval_spans_source_means() -> None:
    model = TensorModel(Chain(), (5, 4))
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, support="observed", interval="pooled", batch_size=2)
    pooled = pool(outputs(model, "layers.0", SOURCE), "tokens", None)
    low, high = act_map["toy/layers.0"].low, act_map["toy/layers.0"].high
    assert low is not None
    assert high is not None
    assert torch.allclose(low, pooled.amin(0), rtol=1e-5)  # as above
    assert torch.allclose(high, pooled.amax(0), rtol=1e-5)


@pytest.mark.parametrize("interval", ["token", "pooled"])
def test_shifted_feature_maps_have_pooled_intervals(interval: Any) -> None:
    model = mixed()
    pooled = pool(outputs(model, "conv", SOURCE), "spatial", None)
    shifted = fit(model, SOURCE, TARGET, sites="toy/conv", support="observed", interval=interval)
    assert shifted["toy/conv"].high is not None
    assert torch.allclose(shifted["toy/conv"].high, pooled.amax(0), rtol=1e-5)  # float32 sums of 25 values


def test_pointwise_feature_maps_have_token_intervals() -> None:
    model = mixed()
    act_map = fit(model, SOURCE, TARGET, sites="toy/conv", support="observed", spatial="pointwise")
    values = outputs(model, "conv", SOURCE)
    assert act_map["toy/conv"].high is not None
    assert torch.allclose(act_map["toy/conv"].high, values.amax((0, 2, 3)), rtol=1e-5)  # as above


def test_unbounded_map_has_no_interval() -> None:
    assert not any(t.bounded for t in fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES).transports.values())


# --- progress


def test_progress_is_called_after_each_site_in_the_callers_thread() -> None:
    calls: list[tuple[int, int, str]] = []
    threads: set[threading.Thread] = set()

    def progress(done: int, total: int, site: str) -> None:
        threads.add(threading.current_thread())
        calls.append((done, total, site))

    fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES, batch_size=2, progress=progress)
    assert calls == [(i, 5, key) for i, key in enumerate(MIXED_IN_ORDER, start=1)]
    assert threads == {threading.current_thread()}


def test_progress_callback_may_run_the_model() -> None:
    """Like a preview; its activations are neither measured nor steered."""
    model, plain, previews = chain(), fit(chain(), SOURCE, TARGET, sites=LAYERS), []
    preview = model.batches(SOURCE, len(SOURCE))[0]
    untouched = cast("torch.Tensor", preview.run())
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, progress=lambda *_: previews.append(preview.run()))
    assert max(act_map.difference(plain).values()) == 0
    assert len(previews) == len(act_map)
    assert all(torch.equal(shown, untouched) for shown in previews)


# --- activations


def test_constant_channels_are_counted_as_fallbacks() -> None:
    model = chain()
    layer = model.module.get_submodule("layers.0")
    assert isinstance(layer.weight, Tensor)
    layer.weight.data[1] = 0
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    assert act_map["toy/layers.0"].fallbacks == 1
    assert act_map.fallbacks >= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_gives_a_similar_map(dtype: torch.dtype) -> None:
    exact, half = (fit(tiny_llama(d), SOURCE, TARGET, sites="norms") for d in (torch.float32, dtype))
    for key in keys(exact):
        assert half[key].omega.dtype == torch.float32
        # Rounding of each layer (bfloat16: 0.4 percent) adds up, and the slopes of six prompts amplify it.
        assert float((half[key].omega - exact[key].omega).norm() / exact[key].omega.norm()) < 0.2


@pytest.mark.parametrize("support", ["unbounded", "observed"])
def test_map_from_inference_mode_supports_gradients(support: Any, llama: TransformersModel) -> None:
    with torch.inference_mode():
        act_map = fit(llama, SOURCE, TARGET, sites="norms", support=support)
    kept = [t for transport in act_map.transports.values() for t in tensors_of(transport) if t is not None]
    assert not any(t.is_inference() for t in kept)
    batch = llama.batches(SOURCE[:1], 1)[0]
    with steer(llama.module, act_map):
        hidden: Any = batch.run()
        hidden.last_hidden_state.sum().backward()
    assert llama.module.model.embed_tokens.weight.grad.isfinite().all()


def test_compiled_submodule_keeps_its_site_name() -> None:
    plain, compiled = mixed(), mixed()
    parts: Any = compiled.module
    parts.split = torch.compile(parts.split, backend="eager")
    assert_identical(
        fit(compiled, SOURCE, TARGET, sites=MIXED_SITES, batch_size=3),
        fit(plain, SOURCE, TARGET, sites=MIXED_SITES, batch_size=3),
    )


def test_encoded_prompts_differ() -> None:
    """The other tests rely on this."""
    rows = [encoded(prompt, (4,)) for prompt in (*SOURCE, *TARGET)]
    assert len({tuple(row.tolist()) for row in rows}) == 12
