"""Sites of mixtures of experts: their MLP is the module that the block adds, never an expert or the router."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import GLAD, SAD, byte_tokenizer, randomise, swapped
from language_models import LAYERS, built, sites_of, tiny
from torch import Tensor, nn

from act_core import fit, steer
from act_core.architectures import architecture_of
from act_core.errors import FitError
from act_core.interception import output_tensors
from act_core.models.transformers import TransformersModel

# What the preset `mlp` finds in a layer.
WITH_RECORD = {
    "mixtral": "mlp",
    "qwen2_moe": "mlp",
    "qwen3_moe": "mlp",
    "olmoe": "mlp",
    "deepseek_v2": "mlp",
    "deepseek_v3": "mlp",
    "gpt_oss": "mlp",
    "phimoe": "mlp",
    "granitemoe": "block_sparse_moe",
    "ernie4_5_moe": "mlp",
    "hunyuan_v1_moe": "mlp",
}
BY_RULE = {
    "dbrx": "ffn",
    "jetmoe": "mlp",
    "minimax": "mlp",
    "afmoe": "mlp",
    # An MLP that every token passes runs beside the experts, and both are added.
    "granitemoeshared": "block_sparse_moe shared_mlp",
    "granitemoehybrid": "block_sparse_moe shared_mlp",
    "longcat_flash": "mlp mlps.0 mlps.1",
}
MLP = WITH_RECORD | BY_RULE


def leaves(names: list[str]) -> Counter[str]:
    return Counter(re.sub(r".*?\.\d+\.", "", name, count=1) for name in names)


def first_outputs(model: TransformersModel, names: list[str]) -> dict[str, Tensor]:
    """The first tensor that each of some submodules returns for two prompts."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.module.get_submodule(name).register_forward_hook(
            lambda _module, _given, output, name=name: found.update({name: next(iter(output_tensors(output).values()))})
        )
        for name in names
    ]
    with torch.inference_mode():
        model.batches(["rain", "sunny"], 2)[0].run()
    for hook in hooks:
        hook.remove()
    return found


def is_mixture(module: nn.Module) -> bool:
    return any("expert" in name for name, _ in module.named_parameters()) or hasattr(module, "router")


@pytest.mark.parametrize("kind", MLP)
def test_mlp_is_the_module_of_the_block(kind: str) -> None:
    model = tiny(kind)
    assert bool(architecture_of(model.module).presets) == (kind in WITH_RECORD)
    names = sites_of(model, "mlp")
    blocks = len(sites_of(model, "blocks"))
    assert leaves(names) == dict.fromkeys(MLP[kind].split(), blocks)
    assert not [name for name in names if re.search(r"expert|router|gate", name)]
    assert any(is_mixture(model.module.get_submodule(name)) for name in names)
    assert {tuple(output.shape) for output in first_outputs(model, names).values()} == {(2, len("sunny"), 32)}


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        # Its attention is a mixture of experts, too, which no single linear layer ends.
        ("jetmoe", {"self_attention": LAYERS}),
        ("dbrx", {"norm_attn_norm.attn.out_proj": LAYERS}),
        ("longcat_flash", {"self_attn.0.o_proj": LAYERS // 2, "self_attn.1.o_proj": LAYERS // 2}),
        ("granitemoehybrid", {"self_attn.o_proj": LAYERS // 2, "mamba.out_proj": LAYERS // 2}),
    ],
)
def test_rule_finds_each_attention_of_a_mixture(kind: str, attention: dict[str, int]) -> None:
    assert leaves(sites_of(tiny(kind), "attention")) == attention


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "granitemoeshared", "jetmoe", "longcat_flash"])
def test_map_of_a_mixture_is_fitted_and_applied(kind: str) -> None:
    module: Any = randomise(built(kind), scale=0.05)
    model = TransformersModel(module, byte_tokenizer(), kind)  # pyright: ignore[reportArgumentType]

    def logits() -> Tensor:
        with torch.inference_mode():
            return module(torch.arange(1, 7)[None]).logits

    plain = logits()
    act_map = fit(model, SAD, GLAD, sites="mlp, attention")
    with steer(module, act_map) as steering:
        assert not torch.equal(logits(), plain)
    assert len(steering.coverage.fired) == len(act_map)
    with steer(module, act_map, 0):
        assert torch.equal(logits(), plain)
    assert torch.equal(logits(), plain)
    assert swapped(module) == []


def test_mixer_that_is_an_mlp_is_not_attention() -> None:
    """Nemotron-H calls whatever its layers hold a mixer: a state space, experts, attention or an MLP."""
    model = tiny("nemotron_h")
    kinds = {name: type(model.module.get_submodule(name)).__name__ for name in sites_of(model, "mlp")}
    assert sorted(kinds.values()) == ["NemotronHMLP", "NemotronHMoE"]
    assert not [name for name in sites_of(model, "attention") if "expert" in name or name.endswith("down_proj")]


def test_experts_do_not_return_one_row_per_prompt() -> None:
    with pytest.raises(FitError, match=r"language_model/\*\.experts"):
        sites_of(tiny("mixtral"), "language_model/*.experts")
