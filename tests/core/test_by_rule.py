"""Sites of models without a record, found by rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import GLAD, SAD, byte_tokenizer, randomise
from language_models import BY_RECORD, BY_RULE, LAYERS, built, sites_of, tiny
from torch import Tensor, nn

from act_core import MapError, fit, load_map, save_map, steer
from act_core.architectures import Architecture, architecture_of
from act_core.architectures.by_rule import Call, record_by_rule
from act_core.components import Component
from act_core.discovery import discover
from act_core.errors import FitError
from act_core.interception import output_tensors
from act_core.models.transformers import TransformersModel
from act_core.sites import Site


def by_rule(model: Any, sites: str) -> list[Site]:
    """The sites that the rule finds, whether or not the architecture has a record."""
    parts = [replace(part, architecture=Architecture("unknown")) for part in model.components]
    batch = model.batches(["rain", "sunny"], 2)[0]
    with torch.inference_mode():
        return discover(parts, sites, batch.run, batch.rows)


def leaves(names: Sequence[str]) -> Counter[str]:
    """How often the same part of a block was found."""
    return Counter(re.sub(r".*?\.\d+\.", "", name, count=1) for name in names)


# --- against the records


def outputs(model: TransformersModel, sites: Sequence[Site]) -> list[Tensor]:
    """What the submodules of the sites return."""
    found: dict[str, Tensor] = {}
    modules = {site.name: model.module.get_submodule(site.name) for site in sites}
    hooks = [
        module.register_forward_hook(
            lambda _module, _given, output, name=name: found.__setitem__(
                name, next(iter(output_tensors(output).values())).clone()
            )
        )
        for name, module in modules.items()
    ]
    with torch.inference_mode():
        model.batches(["rain", "sunny"], 2)[0].run()
    for hook in hooks:
        hook.remove()
    return [found[site.name] for site in sites]


@pytest.mark.parametrize("kind", BY_RECORD)
def test_rule_finds_the_tensors_of_the_record(kind: str) -> None:
    model = tiny(kind)
    batch = model.batches(["rain", "sunny"], 2)[0]
    for preset in ("attention", "mlp", "blocks"):
        with torch.inference_mode():
            recorded = discover(model.components, preset, batch.run, batch.rows)
        found = by_rule(model, preset)
        # The name may be that of the module around: what counts is the tensor.
        pairs = zip(outputs(model, recorded), outputs(model, found), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), preset


@pytest.mark.parametrize("kind", BY_RECORD)
def test_rule_finds_the_norms_of_the_record(kind: str) -> None:
    # Gemma and GLM have further norms, of which the record chose some by measurement.
    assert set(sites_of(tiny(kind), "norms")) <= {site.name for site in by_rule(tiny(kind), "norms")}


# --- models without a record


@pytest.mark.parametrize("kind", BY_RULE)
def test_rule_finds_the_parts_of_every_block(kind: str) -> None:
    assert not architecture_of(built(kind, "meta")).presets
    attention, mlp = BY_RULE[kind]
    kinds = attention.split()
    mixed = dict.fromkeys(kinds, LAYERS // len(kinds))
    assert leaves(sites_of(tiny(kind), "attention, mlp")) == mixed | ({mlp: LAYERS} if mlp else {})
    assert leaves(sites_of(tiny(kind), "auto")) == mixed  # as for language models with a record
    assert len(sites_of(tiny(kind), "blocks")) == LAYERS
    assert len(sites_of(tiny(kind), "norms")) >= LAYERS
    everything = sites_of(tiny(kind), "all")
    assert set(everything) > set(sites_of(tiny(kind), "auto"))


@pytest.mark.parametrize("kind", BY_RULE)
def test_map_by_rule_is_fitted_saved_and_applied(kind: str, tmp_path: Any) -> None:
    module = randomise(built(kind), scale=0.05)
    model = TransformersModel(module, byte_tokenizer(), kind)  # pyright: ignore[reportArgumentType]

    def logits() -> Tensor:
        with torch.inference_mode():
            return module(torch.arange(1, 7)[None]).logits

    plain, weights = logits(), {name: value.clone() for name, value in module.state_dict().items()}
    act_map = fit(model, SAD, GLAD)
    assert "sites of the language model found by rule" in act_map.record.notes
    save_map(act_map, tmp_path / "map.safetensors")
    loaded = load_map(tmp_path / "map.safetensors")
    assert list(loaded.transports) == list(act_map.transports)
    for strength, changes in ((0.0, False), (1.0, True)):
        with steer(model, loaded, strength) as steering:
            assert torch.equal(logits(), plain) != changes
        assert len(steering.coverage.fired) == len(loaded) or not changes
    assert torch.equal(logits(), plain)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_map_of_a_model_with_a_record_has_no_such_note() -> None:
    assert not any("rule" in note for note in fit(tiny("qwen2"), SAD, GLAD).record.notes)


# --- the rule itself


class Modulated(nn.Module):
    """A norm with modulation, which holds a plain norm and also returns a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(x) * 2, x[:, 0]


class ModulatedNorm(Modulated):
    pass


class JointBlock(nn.Module):
    """Two streams, text and picture, that meet in one attention, whose parts are called but not itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.norm_text = ModulatedNorm(channels), nn.LayerNorm(channels)
        self.attn = nn.ModuleDict(
            {name: nn.Linear(channels, channels) for name in ("to_q", "to_k", "to_out", "to_add_out")}
        )
        self.attn["q_norm"] = nn.LayerNorm(channels)
        self.modulation = nn.Linear(channels, channels)
        self.mlp, self.mlp_text = (
            nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
            for _ in range(2)
        )
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.norm(x)[0], self.norm_text(text)], 1)
        mixed = self.attn["q_norm"](self.attn["to_q"](both)) + self.attn["to_k"](both)
        length = x.shape[1]
        x = x + self.attn["to_out"](mixed[:, :length]) * self.modulation(x[:, :1])
        text = text + self.attn["to_add_out"](mixed[:, length:])
        x, text = x + self.mlp(x), text + self.mlp_text(text)
        return x * self.gate(x).sigmoid(), text


class SingleBlock(nn.Module):
    """One stream, and one linear layer for attention and feed-forward together, as in Flux."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.linear1, self.linear2 = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear2(self.linear1(self.pre_norm(x)).tanh())


class TwoStreams(nn.Module):
    """A small picture model of a kind that nobody has described."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(4, channels)
        self.double_blocks = nn.ModuleList([JointBlock(channels) for _ in range(2)])
        self.single_blocks = nn.ModuleList([SingleBlock(channels) for _ in range(2)])
        self.unused = nn.ModuleList([SingleBlock(channels)])
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x, text = self.embed(x), self.embed(text)
        for block in self.double_blocks:
            x, text = block(x, text)
        joined = torch.cat([text, x], 1)
        for block in self.single_blocks:
            joined = block(joined)
        return self.head(joined[:, text.shape[1] :])


def names(model: nn.Module, sites: str, rows: int = 2) -> list[str]:
    component = Component("toy", model, architecture_of(model))
    pictures, text = torch.randn(rows, 9, 4), torch.randn(rows, 5, 4)
    with torch.inference_mode():
        found = discover([component], sites, lambda: model(pictures, text), rows)
    return [site.key.removeprefix("toy/") for site in found]


def each(*parts: str, blocks: str) -> list[str]:
    return [f"{blocks}.{number}{part}" for number in range(2) for part in parts]


def test_rule_finds_each_part_once_for_each_stream() -> None:
    model = TwoStreams()
    assert names(model, "blocks") == [*each("#0", "#1", blocks="double_blocks"), *each("", blocks="single_blocks")]
    assert names(model, "attention") == each(".attn.to_out", ".attn.to_add_out", blocks="double_blocks")
    mlp = [*each(".mlp", ".mlp_text", blocks="double_blocks"), *each(".linear2", blocks="single_blocks")]
    assert names(model, "mlp") == mlp
    assert set(names(model, "auto")) == {*mlp, *names(model, "attention")}
    norms = [*each(".norm#0", ".norm_text", blocks="double_blocks"), *each(".pre_norm", blocks="single_blocks")]
    assert names(model, "norms") == norms


def test_rule_leaves_out_what_does_not_run_and_what_lies_outside_blocks() -> None:
    assert not [name for name in names(TwoStreams(), "all") if name.startswith(("unused", "head", "embed"))]


class Wrapped(nn.Module):
    """A linear layer whose weights are packed by another library."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed, self.bias = linear.weight.data.flatten().to(torch.float16), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.packed.float().view(-1, x.shape[-1]), self.bias)


class PackedLinear(Wrapped):
    pass


def test_rule_finds_quantised_layers() -> None:
    model, quantised = TwoStreams(), TwoStreams()
    for parent in list(quantised.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child)) if not isinstance(
                    parent, nn.ModuleDict
                ) else parent.__setitem__(name, PackedLinear(child))
    assert names(quantised, "all") == names(model, "all")


def test_rule_measures_a_block_that_runs_twice_at_its_first_call() -> None:
    class Twice(TwoStreams):
        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            return super().forward(super().forward(x, text), text)

    assert names(Twice(), "auto") == names(TwoStreams(), "auto")


@pytest.mark.parametrize("sites", ["auto", "all", "mlp"])
def test_model_without_numbered_blocks_asks_for_patterns(sites: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    component = Component("toy", model, architecture_of(model))
    with pytest.raises(
        FitError, match=rf"'Sequential' has no presets, and a search for '{sites}' found nothing in it: .*give patterns"
    ):
        discover([component], sites, lambda: model(torch.ones(2, 5, 3)), 2)


def test_model_that_hides_its_rows_asks_for_patterns() -> None:
    class Flattened(TwoStreams):
        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1)[None], text.flatten(0, 1)[None])

    with pytest.raises(MapError, match="a search for 'auto' found nothing in it"):
        names(Flattened(), "auto")
    with pytest.raises(MapError, match="returns activations, one row for each prompt"):
        names(Flattened(), "toy/double_blocks.0.mlp")


def test_patterns_and_presets_mix_in_models_without_a_record() -> None:
    assert names(TwoStreams(), "attention, toy/head") == [*names(TwoStreams(), "attention"), "head"]
    with pytest.raises(MapError, match="'toy/haed'; the closest names are toy/head"):
        names(TwoStreams(), "attention, toy/haed")


def test_record_by_rule_of_nothing_has_no_presets() -> None:
    assert record_by_rule("toy", {"": nn.Identity()}, [], ()).presets == {}
    assert record_by_rule("toy", {"": nn.Identity(), "0": nn.Identity()}, [Call("0", {})], ()).presets == {}
