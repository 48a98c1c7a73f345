"""Sites that cannot be found or fitted: each error says what was looked for and what to try, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import GLAD, SAD, Chain, TensorModel, byte_tokenizer, chain, prompts, randomise, swapped, tiny_llama
from language_models import built
from torch import Tensor, nn

from act_core import fit, steer
from act_core.architectures import architecture_of
from act_core.components import Component
from act_core.discovery import discover
from act_core.errors import FitError, MapError
from act_core.models.transformers import TransformersModel

SOURCE, TARGET = prompts("source", 5), prompts("target", 5)


def refusal(model: Any, sites: str, source: list[str] = SOURCE, target: list[str] = TARGET, **settings: Any) -> str:
    """The error of a fit, which must be one line and leave the model as it was."""
    with pytest.raises(FitError) as caught:
        fit(model, source, target, sites=sites, **settings)
    assert swapped(model.module) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- patterns


def test_pattern_that_matches_nothing_names_the_closest() -> None:
    assert refusal(tiny_llama(), "*.mlp.down_porj") == (
        "No part of the model matches the sites '*.mlp.down_porj'; the closest names are "
        "language_model/model.layers.*.mlp.down_proj, language_model/model.layers.*.mlp.up_proj, "
        "language_model/model.layers.*.mlp.gate_proj."
    )


def test_pattern_for_a_model_without_parts_has_advice() -> None:
    assert refusal(TensorModel(nn.Linear(4, 4), (4,)), "toy/layer") == (
        "No part of the model matches the sites 'toy/layer'; the model has no named parts, so wrap it in one."
    )


class WithSpare(Chain):
    """Has a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.ModuleList([nn.Linear(4, 4)])


@pytest.mark.parametrize("sites", ["toy/spare.*", "toy/layers.*, toy/spare.0"])
def test_pattern_for_parts_that_never_run_says_so(sites: str) -> None:
    message = refusal(TensorModel(WithSpare(), (4,)), sites)
    assert f"match the sites {sites.rpartition(', ')[2]!r} never ran in a trial with 2 prompts; choose " in message
    assert ("such as toy/layers.*" in message) == ("layers" in sites)


def test_lm_head_of_a_language_model_never_runs_in_a_fit() -> None:
    message = refusal(tiny_llama(), "*/lm_head", SAD, GLAD)
    assert message.startswith("The parts of the model that match the sites '*/lm_head' never ran in a trial")


class Flattened(Chain):
    """Joins rows and tokens before its layers, as OPT does before its feed-forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


def test_outputs_of_another_batch_size_are_shown() -> None:
    assert refusal(TensorModel(Flattened(), (3, 4)), "toy/layers.1") == (
        "No part of the model that matches the sites 'toy/layers.1' returns activations, one row for each prompt: "
        "toy/layers.1 returned [6, 4] for 2 prompts; choose other parts."
    )


def test_flattened_feed_forward_of_a_language_model_is_shown() -> None:
    model = TransformersModel(built("opt"), byte_tokenizer(), "opt")
    message = refusal(model, "attention, *.fc2", SAD, GLAD)
    assert "the sites '*.fc2' returns activations, one row for each prompt: " in message
    assert "decoder.layers.0.fc2 returned [" in message
    assert "choose parts that do, such as language_model/" in message


@pytest.mark.parametrize(
    ("sites", "what"), [("toy/0", r"returned \[2, 4\]"), ("toy/1#3", "returned no output of that number")]
)
def test_outputs_that_are_not_activations_are_shown(sites: str, what: str) -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.long()

    class Back(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    model = nn.Sequential(Rounded(), Back())
    component = Component("toy", model, architecture_of(model))
    with pytest.raises(FitError, match=what):
        discover([component], sites, lambda: model(torch.ones(2, 4)), 2)


# --- models that nobody has described


class Mystery(nn.Module):
    """No numbered blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mix, self.decode = (nn.Linear(4, 4) for _ in range(3))
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.mix(self.encode(x)).tanh())


@pytest.mark.parametrize("sites", ["auto", "norms", "all"])
def test_unknown_class_without_blocks_is_told_what_to_try(sites: str) -> None:
    model = TensorModel(Mystery(), (3, 4))
    assert refusal(model, sites) == (
        f"The architecture 'toy' has no presets, and a search for {sites!r} found nothing in it: it looks for numbered "
        "blocks, such as layers.0, that hold linear layers and return one row for each prompt; give patterns instead, "
        "such as 'toy/encode', 'toy/mix', 'toy/decode'."
    )
    assert len(fit(model, SOURCE, TARGET, sites="toy/encode, toy/mix")) == 2


class Wrapper(nn.Module):
    """A class of one's own around a model of transformers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


def test_wrapper_around_a_language_model_is_refused_with_advice() -> None:
    with pytest.raises(
        MapError,
        match=r"^mine is a Wrapper, not a model of the transformers library; give the model inside it, or write an",
    ):
        TransformersModel(Wrapper(tiny_llama().module), tiny_llama().tokenizer, "mine")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["qwen2", "phi"])
def test_wrapped_language_model_keeps_its_sites_in_discover(kind: str) -> None:
    inner = TransformersModel(built(kind), tiny_llama().tokenizer, kind)
    wrapper = Wrapper(inner.module)
    component = Component("mine", wrapper, architecture_of(wrapper))
    inputs = {"input_ids": torch.arange(1, 9).view(2, 4)}
    with torch.inference_mode():
        found = discover([component], "attention", lambda: wrapper(**inputs), 2)
    assert len(found) == 4
    assert all(site.name.startswith("inner.model.layers.") for site in found)


# --- models whose forward depends on the prompt


class Sometimes(nn.Module):
    """Runs its second layer only for some batches."""

    def __init__(self, runs: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.third(self.second(x) if self.runs(x) else x)


def test_site_that_some_prompts_never_run_is_named() -> None:
    model = TensorModel(Sometimes(lambda x: len(x) == 2), (4,))
    assert refusal(model, "toy/first, toy/second", batch_size=2) == (
        "Some source prompts never run site toy/second with one row for each prompt, unlike the first prompts; choose "
        "other sites, or leave those prompts out."
    )
    assert refusal(model, "toy/*", batch_size=2) == (
        "Some source prompts come to site toy/third before site toy/second, or never run that one, unlike the first "
        "prompts; choose other sites, or leave those prompts out."
    )
    assert len(fit(model, SOURCE, TARGET, sites="toy/first, toy/third", batch_size=2)) == 2


def test_site_with_other_rows_in_a_later_batch_is_named() -> None:
    class Doubling(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(torch.cat([x, x]) if len(x) == 3 else x)
            return y[: len(x)]

    assert refusal(TensorModel(Doubling(), (4,)), "toy/layers.0", batch_size=3) == (
        "Some source prompts never run site toy/layers.0 with one row for each prompt, unlike the first prompts; "
        "choose other sites, or leave those prompts out."
    )


class Twice(Chain):
    """Runs its middle layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        first, middle, last = self.layers
        return last(middle(middle(first(x)).tanh()))


def test_block_that_runs_twice_is_measured_once_and_steered_twice() -> None:
    model = TensorModel(Twice(), (4,))
    act_map = fit(model, SOURCE, TARGET, sites="toy/layers.*", estimator="mean", order="simultaneous")
    first, middle = (model.module.get_submodule(f"layers.{n}") for n in (0, 1))
    with torch.no_grad():
        means = [middle(first(model.rows(side))).mean(0) for side in (SOURCE, TARGET)]
    # Means of float32 values, in another order.
    assert torch.allclose(act_map["toy/layers.1"].beta, means[1] - means[0], atol=1e-5)
    with torch.no_grad(), steer(model.module, act_map) as steering:
        model.module(model.rows(SOURCE))
    assert steering.coverage.fires == {"toy/layers.0": 1, "toy/layers.1": 2, "toy/layers.2": 1}


def test_prompts_of_different_shapes_walk_together() -> None:
    """Each micro-batch has one shape; the batches of a walk need not have the same."""
    assert len(fit(tiny_llama(), ["a", "a longer prompt", "b"], ["c", "dd", "eeeeeee"], batch_size=1)) == 3
    assert len(fit(chain(), SOURCE, TARGET[:2], sites="toy/layers.*", batch_size=3)) == 3
