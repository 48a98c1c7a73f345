"""A small model whose text and picture tokens share a stream."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from act_core import ActMap, fit
from act_core.architectures import Architecture
from act_core.components import Component
from act_core.fitting import FitModel, MicroBatch

WIDTH = 4
PICTURE = 6  # tokens
SITES = "toy/blocks.*"


class Joint(nn.Module):
    """Embeds text and picture, and runs both as one stream.

    Args:
        join: how the stream is made: ``cat``, or ``slices`` of an empty tensor.
        text_first: whether the text comes first.
    """

    def __init__(self, join: str = "cat", *, text_first: bool = True) -> None:
        super().__init__()
        self.text_in = nn.Linear(WIDTH, WIDTH)
        self.picture_in = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.join = join
        self.text_first = text_first
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        parts = [self.text_in(text), self.picture_in(picture)]
        first, second = parts if self.text_first else parts[::-1]
        if self.join == "cat":
            x = torch.cat([first, second], dim=-2)
        else:
            x = first.new_zeros(len(first), first.shape[1] + second.shape[1], WIDTH)
            x[:, : first.shape[1]] = first
            x[:, first.shape[1] :] = second
        for block in self.blocks:
            x = x + block(x)
        return x


class JointModel(FitModel[str]):
    """A word is a token of text; all pictures have the same number of tokens.

    Text tokens come from one distribution on both sides, so that prompts of another length are the only difference.
    """

    def __init__(self, module: Joint) -> None:
        self.module = module

    @property
    def components(self) -> list[Component]:
        return [Component("toy", self.module, Architecture("toy"))]

    def batch_key(self, sample: str) -> Hashable:
        return len(sample.split())

    def inputs(self, sample: str) -> tuple[Tensor, Tensor]:
        words = sample.split()
        text = torch.tensor([[float(hash_of(word, channel)) for channel in range(WIDTH)] for word in words])
        generator = torch.Generator().manual_seed(len(sample))
        return text[None] + 5, torch.randn(1, PICTURE, WIDTH, generator=generator)

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        return [MicroBatch(1, partial(self.module, *self.inputs(sample))) for sample in samples]


def hash_of(word: str, channel: int) -> int:
    return (sum(map(ord, word)) * (channel + 3)) % 7 - 3


SHORT = ["a cat", "two dogs", "my house", "that boat"]
LONG = ["a cat on the old red roof", "two dogs in the rain at night", "my house by the long wide sea", "that boat ok"]


def fitted(model: JointModel, target: Sequence[str] = LONG, **changes: Any) -> ActMap:
    return fit(model, SHORT, target, sites=SITES, **changes)
