"""The lockstep walk gives the same map as running the model once for each site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import (
    MIXED_SITES,
    TensorModel,
    assert_identical,
    chain,
    keys,
    mixed,
    prompts,
    tiny_llama,
)
from torch import Tensor, nn

from act_core import fit
from act_core.fitting import FitModel
from act_core.models.transformers import TransformersModel
from act_core.settings import Moved
from benchmarks.lib.rerun import fit_by_rerunning

SOURCE, TARGET = prompts("source", 7), prompts("target", 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# --- the same as rerunning


@pytest.mark.parametrize("moved", ["source", "both"])
@pytest.mark.parametrize("batch_size", [7, 4, 1], ids=["1 batch", "2 batches, the last smaller", "7 batches"])
@pytest.mark.parametrize("make", [tiny_llama, mixed, chain])
def test_lockstep_equals_rerunning_bit_for_bit(
    make: Callable[[], FitModel[str]], batch_size: int, moved: Moved
) -> None:
    model, sites = make(), "all" if make is tiny_llama else MIXED_SITES if make is mixed else "toy/layers.*"
    walked = fit(model, SOURCE, TARGET, sites=sites, batch_size=batch_size, moved=moved)
    rerun = fit_by_rerunning(model, SOURCE, TARGET, sites, batch_size=batch_size, moved=moved)
    assert len(walked) > 2
    assert_identical(walked, rerun)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [tiny_llama, mixed])
def test_lockstep_equals_rerunning_in_every_dtype(make: Callable[..., FitModel[str]], dtype: torch.dtype) -> None:
    model, sites = make(dtype), "norms" if make is tiny_llama else MIXED_SITES
    walked = fit(model, SOURCE, TARGET, sites=sites, batch_size=3)
    assert_identical(walked, fit_by_rerunning(model, SOURCE, TARGET, sites, batch_size=3))


@pytest.mark.parametrize("estimator", ["mean", "gaussian"])
def test_lockstep_equals_rerunning_for_every_estimator(estimator: Any) -> None:
    walked = fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES, estimator=estimator, batch_size=3)
    assert_identical(walked, fit_by_rerunning(mixed(), SOURCE, TARGET, MIXED_SITES, estimator, batch_size=3))


def test_lockstep_equals_rerunning_with_unequal_numbers_of_prompts(llama: TransformersModel) -> None:
    walked = fit(llama, SOURCE[:5], TARGET, sites="norms", batch_size=2)
    assert_identical(walked, fit_by_rerunning(llama, SOURCE[:5], TARGET, "norms", batch_size=2))


def test_lockstep_equals_rerunning_on_the_real_model(smollm2: TransformersModel) -> None:
    source, target = SOURCE[:3], TARGET[:3]
    sites = "*/model.layers.[0-3].input_layernorm"
    walked = fit(smollm2, source, target, sites=sites, batch_size=2)
    assert_identical(walked, fit_by_rerunning(smollm2, source, target, sites, batch_size=2))


def test_earlier_sites_change_later_ones_in_a_causal_fit() -> None:
    one, both = (fit(chain(), SOURCE, TARGET, sites="toy/layers.*", moved=moved) for moved in ("source", "both"))
    still = fit(chain(), SOURCE, TARGET, sites="toy/layers.*", order="simultaneous")
    first = "toy/layers.0"
    assert torch.equal(one[first].omega, both[first].omega)
    assert torch.equal(one[first].omega, still[first].omega)
    for other in (both, still):
        assert not torch.equal(one["toy/layers.1"].omega, other["toy/layers.1"].omega)
    assert not torch.equal(both["toy/layers.1"].omega, still["toy/layers.1"].omega)


def test_later_sites_are_identities_after_an_exact_map() -> None:
    """If the target is an affine image of the source at the first site, the next sites see equal activations."""

    class Affine(TensorModel):
        def rows(self, prompts: Sequence[str]) -> Tensor:
            return super().rows([p.replace("target", "source") for p in prompts]) * (1 + 2 * p_is_target(prompts))

    model = Affine(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4)), (4,))
    model.module[0].weight.data = torch.eye(4)  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    act_map = fit(model, SOURCE, TARGET, sites="toy/0, toy/2")
    # Float32 activations of size 5.
    assert torch.allclose(act_map["toy/0"].omega, torch.full((4,), 3.0), rtol=1e-5)
    assert torch.allclose(act_map["toy/2"].omega, torch.ones(4), atol=1e-4)
    assert torch.allclose(act_map["toy/2"].beta, torch.zeros(4), atol=1e-4)


def p_is_target(prompts: Sequence[str]) -> float:
    return float(prompts[0].startswith("target"))


def test_causal_order_follows_execution_not_registration() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(4, 4)
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).tanh())

    act_map = fit(TensorModel(Late(), (4,)), SOURCE, TARGET, sites="toy/*")
    assert keys(act_map) == ["toy/first", "toy/second"]
    torch.manual_seed(0)
    model = TensorModel(Late(), (4,))
    assert_identical(fit(model, SOURCE, TARGET, sites="toy/*"), fit_by_rerunning(model, SOURCE, TARGET, "toy/*"))


def test_repeated_site_is_measured_once_and_steered_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.last = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.shared(self.shared(x).tanh()).tanh())

    model = TensorModel(Twice(), (4,))
    act_map = fit(model, SOURCE, TARGET, sites="toy/*", batch_size=3)
    assert_identical(act_map, fit_by_rerunning(model, SOURCE, TARGET, "toy/*", batch_size=3))


def test_padding_side_does_not_matter(llama: TransformersModel) -> None:
    class LeftPadded(TransformersModel):
        def _padded(self, tokens: Sequence[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
            return super()._padded(tokens, left=not left)

    left = LeftPadded(llama.module, llama.tokenizer)
    maps = [fit(model, SOURCE, TARGET, sites="norms", batch_size=3) for model in (llama, left)]
    alone = fit(llama, SOURCE, TARGET, sites="norms", batch_size=1)  # no padding at all
    # Other positions give other float32 roundings in the rotary embedding, and small slopes and offsets amplify them.
    for one in maps:
        for site, transport in alone.transports.items():
            assert torch.allclose(one[site.key].omega, transport.omega, rtol=1e-3, atol=1e-3)
            assert torch.allclose(one[site.key].beta, transport.beta, rtol=1e-3, atol=1e-3)
