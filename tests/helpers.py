"""Small models, prompts and checks that several test files share."""

from __future__ import annotations

import importlib.util
import threading
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from act_core import ActMap
from act_core.architectures import Architecture
from act_core.components import Component
from act_core.fitting import FitModel, MicroBatch
from act_core.models.transformers import TransformersModel
from act_core.transport import Transport

# A family without presets.
TOY = Architecture("toy")

SAD = [
    "The rain has not stopped for days and nobody smiles.",
    "I lost my job, my home and every hope I had.",
    "They buried the old dog under the bare tree.",
    "Nobody came to the funeral but the priest.",
]
GLAD = [
    "The sun is out and the children laugh in the garden.",
    "I found the job I always wanted and we danced.",
    "The puppy ran to greet us, wagging its tail.",
    "Everybody came to the wedding and sang till dawn.",
]


def prompts(side: str, count: int) -> list[str]:
    """Distinct prompts whose lengths differ, so that batches of them are padded."""
    words = ["rain", "sun", "field", "harbour", "letter"]
    return [f"{side} {number}: " + " ".join(words[: 1 + number % len(words)]) for number in range(count)]


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Give every parameter fixed random values; vectors (norms, biases) get them around 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator) * scale
        parameter.data = (values + 1 if parameter.ndim == 1 else values).to(parameter.dtype)
    return module


def hide_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages appear uninstalled."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        return None if name in names else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A real tokenizer with one token for each byte, and nothing to download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def tiny_llama(dtype: torch.dtype = torch.float32, *, layers: int = 3, context: int = 512) -> TransformersModel:
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    module = randomise(LlamaForCausalLM(config)).to(dtype).eval()
    return TransformersModel(module, byte_tokenizer(), "tiny")  # pyright: ignore[reportArgumentType]


class Split(nn.Module):
    """Returns a tuple, like attention and transformer blocks; outputs that are not activations must stay unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Linear(channels, channels)
        self.right = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        return self.left(x), self.right(x), None, torch.arange(x.shape[1])


class Mixed(nn.Module):
    """Activations of every layout. The submodules are registered in a different order from that in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 5)
        self.split = Split(6)
        self.norm = nn.GroupNorm(2, 6)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).tanh()
        left, right, *_ = self.split(features.flatten(2).transpose(1, 2))
        return self.head((left * right).mean(1))


MIXED_IN_ORDER = ["toy/conv", "toy/norm", "toy/split#0", "toy/split#1", "toy/head"]
MIXED_SITES = "toy/conv, toy/norm, toy/split, toy/head"


class Chain(nn.Module):
    """Linear layers, one after the other."""

    def __init__(self, channels: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(channels, channels) for _ in range(layers)])
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def encoded(prompt: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A fixed random tensor for a prompt; those of target prompts are wider and lie elsewhere."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode())))
    return (values * 1.5 + 0.7 if prompt.startswith("target") else values).to(dtype)


class TensorModel(FitModel[str]):
    """Any module as a model that can be fitted: each prompt is a fixed random tensor of the given shape.

    Attributes:
        module: the module; it is the component ``toy``.
        resident: number of prompts whose run has started but not ended.
        on_run: called at the beginning of each run, with the prompts of the batch.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.module = module.to(dtype)
        self._components = [Component("toy", self.module, TOY)]
        self.shape = shape
        self.dtype = dtype
        self.resident = 0
        self.on_run: Callable[[Sequence[str]], object] = len

    @property
    def components(self) -> list[Component]:
        return self._components

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [MicroBatch(len(part), partial(self._run, part)) for part in parts]

    def rows(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([encoded(prompt, self.shape, self.dtype) for prompt in prompts])

    def _run(self, prompts: Sequence[str]) -> Any:
        self.resident += len(prompts)
        try:
            self.on_run(prompts)
            return self.module(self.rows(prompts))
        finally:
            self.resident -= len(prompts)


def mixed(dtype: torch.dtype = torch.float32) -> TensorModel:
    return TensorModel(Mixed(), (3, 5, 5), dtype)


def chain(layers: int = 3) -> TensorModel:
    return TensorModel(Chain(layers=layers), (4,))


@contextmanager
def calling_before(module: nn.Module, action: Callable[[], object]) -> Generator[None]:
    """Inside the block `action` is called whenever the module runs."""
    handle = module.register_forward_pre_hook(lambda *_: (action(), None)[1])
    try:
        yield
    finally:
        handle.remove()


def swapped(module: nn.Module) -> list[str]:
    """Names of the submodules whose ``forward`` is not that of their class."""
    return [name for name, part in module.named_modules() if "forward" in part.__dict__]


def walkers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "act-walk"]


class OddError(Exception):
    """An exception of the model or of its caller."""


@contextmanager
def ends_cleanly(model: TensorModel) -> Generator[None]:
    before = {name: dict(part.__dict__) for name, part in model.module.named_modules()}
    threads = set(walkers())
    yield
    assert set(walkers()) == threads
    assert swapped(model.module) == []
    assert before == {name: dict(part.__dict__) for name, part in model.module.named_modules()}
    assert model.resident == 0


def tensors_of(transport: Transport) -> list[Tensor | None]:
    return [transport.omega, transport.beta, transport.low, transport.high, *(transport.statistics or ())]


def same_transport(one: Transport, other: Transport) -> bool:
    """Whether two transports are equal, bit for bit."""
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def keys(act_map: ActMap) -> list[str]:
    return [site.key for site in act_map.transports]


def assert_identical(one: ActMap, other: ActMap) -> None:
    """The same sites in the same order, and transports that are equal bit for bit."""
    assert list(one.transports) == list(other.transports)
    different = [site.key for site in one.transports if not same_transport(one[site.key], other[site.key])]
    assert not different


def largest_difference(one: ActMap, other: ActMap) -> float:
    return max(one.difference(other).values())
