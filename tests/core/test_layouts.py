"""The layouts of activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import TensorModel, prompts, randomise
from torch import Tensor, nn

from act_core import fit, steer
from act_core.discovery import layout_of
from act_core.sites import Layout

SOURCE, TARGET = prompts("source", 4), prompts("target", 4)


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of a feature map, as libraries define it themselves."""


class RMSNormWithoutWeight(nn.Module):
    pass


LAYOUTS: dict[str, tuple[nn.Module, str, tuple[int, ...], Layout | None]] = {
    "vector": (nn.Linear(1, 3), "proj", (2, 3), "vector"),
    "tokens of a linear layer": (nn.Linear(1, 4), "proj", (2, 3, 4), "tokens"),
    "tokens of an activation function": (nn.GELU(), "act", (2, 3, 4), "tokens"),
    "signal of a convolution": (nn.Conv1d(1, 3, 1), "conv", (2, 3, 4), "spatial"),
    "signal of a container of convolutions": (
        nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU()),
        "net",
        (2, 3, 4),
        "spatial",
    ),
    "tokens of a block with a convolution": (
        nn.Sequential(nn.Conv1d(1, 3, 1), nn.Linear(4, 4)),
        "m",
        (2, 3, 4),
        "tokens",
    ),
    "signal of a group norm": (nn.GroupNorm(1, 3), "norm", (2, 3, 4), "spatial"),
    "picture of a convolution": (nn.Conv2d(1, 3, 1), "conv", (2, 3, 4, 5), "spatial"),
    "picture of a group norm": (nn.GroupNorm(1, 3), "norm", (2, 3, 4, 5), "spatial"),
    "picture of a container": (
        nn.Sequential(nn.Conv2d(1, 3, 1), nn.Linear(5, 5)),
        "resnets.0",
        (2, 3, 4, 5),
        "spatial",
    ),
    "picture of a custom norm": (LayerNorm2d(3), "norm", (2, 3, 4, 5), "spatial"),
    "picture without a channel axis": (nn.SiLU(), "act", (2, 3, 4, 5), None),
    "video of a convolution": (nn.Conv3d(1, 3, 1), "conv", (2, 3, 1, 4, 5), "spatial"),
    "grid of tokens": (nn.LayerNorm(5), "blocks.0.norm", (2, 3, 4, 5), "tokens"),
    "video of tokens, channels last": (nn.Linear(1, 6), "blocks.0.mlp.layer2", (2, 3, 4, 5, 6), "tokens"),
    "video of tokens, norm without weight": (RMSNormWithoutWeight(), "blocks.0.norm", (2, 3, 4, 5, 6), "tokens"),
    "attention block over a grid": (nn.Sequential(nn.Linear(1, 5)), "blocks.0.attn", (2, 3, 4, 5), "tokens"),
    "heads": (nn.RMSNorm(5), "layers.0.self_attn.q_norm", (2, 3, 4, 5), None),
    "heads of Attention": (nn.RMSNorm(5), "blocks.0.SelfAttention.k_norm", (2, 3, 4, 5), None),
    "queries before they are split into heads": (nn.RMSNorm(4), "layers.0.self_attn.q_norm", (2, 3, 4), "tokens"),
    "one number per prompt": (nn.Linear(1, 1), "scale", (2,), None),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layout_of_an_output_follows_the_module_that_made_it(case: str) -> None:
    module, name, shape, layout = LAYOUTS[case]
    assert layout_of(module, name, torch.zeros(shape)) == layout


def test_layout_of_whole_numbers_is_none() -> None:
    assert layout_of(nn.Linear(1, 3), "proj", torch.zeros(2, 3, dtype=torch.long)) is None


class Heads(nn.Module):
    """An attention that normalises queries and keys with heads before channels, as most newer models do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.q_norm, self.k_norm = nn.RMSNorm(4), nn.RMSNorm(4)
        self.o_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)) for part in self.qkv(x).chunk(3, -1))
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = Heads()
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class Grid(nn.Module):
    """Blocks over ``[rows, time, height, width, channels]``, as Anima's and Cosmos Predict 2's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Signal(nn.Module):
    """Convolutions over ``[rows, channels, time]``, as in audio models."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.GroupNorm(1, 5))
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@pytest.mark.parametrize(
    ("module", "shape", "sites", "expected"),
    [
        (Block, (3, 8), "*norm*", {"toy/norm": ("tokens", 8)}),
        (Grid, (1, 2, 3, 6), "*", {"toy/norm": ("tokens", 6), "toy/linear": ("tokens", 6)}),
        (Signal, (3, 7), "*block*", {f"toy/block{part}": ("spatial", 5) for part in (".0", ".1", "")}),
    ],
)
def test_fit_and_steer_agree_on_layouts(
    module: Any, shape: tuple[int, ...], sites: str, expected: dict[str, tuple[Layout, int]]
) -> None:
    model = TensorModel(module(), shape)
    act_map = fit(model, SOURCE, TARGET, sites=sites)
    assert {site.key: (site.layout, site.channels) for site in act_map.transports} == expected
    rows = model.rows(SOURCE)
    with torch.no_grad():
        before = model.module(rows)
        with steer(model.module, act_map) as steering:
            after = model.module(rows)
    assert len(steering.coverage.fired) == len(expected)
    assert not torch.equal(before, after)
