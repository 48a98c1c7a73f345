"""Maps and models that the tests of steering share."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from helpers import Chain, TensorModel, chain, prompts, randomise
from torch import Tensor, nn

from act_core import ActMap, fit, steer
from act_core.models.transformers import TransformersModel
from act_core.sites import Site
from act_core.transport import Transport

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


def fitted(model: Any, sites: str, **settings: Any) -> ActMap:
    return fit(model, SOURCE, TARGET, sites=sites, **settings)


def chain_map(**settings: Any) -> ActMap:
    return fitted(chain(), LAYERS, **settings)


def one_site(name: str, omega: float, beta: float, channels: int = 4, **more: Any) -> ActMap:
    """A map of one site of the component ``toy`` that returns vectors."""
    transport = Transport(torch.full((channels,), omega), torch.full((channels,), beta), **more)
    return ActMap({Site("toy", name, None, "vector", channels): transport})


def two_components() -> tuple[dict[str, nn.Module], ActMap]:
    """Two models, and a map that doubles and shifts the last layer of each."""
    modules: dict[str, nn.Module] = {"text": randomise(Chain(), 1), "image": randomise(Chain(), 2)}
    transport = Transport(torch.full((4,), 2.0), torch.ones(4))
    return modules, ActMap({Site(name, "layers.2", None, "vector", 4): transport for name in modules})


def identity() -> TensorModel:
    """A model that returns its input ``[rows, 4]``; its only site is ``toy/0``."""
    return TensorModel(nn.Sequential(nn.Identity()), (4,))


@torch.no_grad()
def output(model: TensorModel) -> Tensor:
    return model.module(model.rows(SOURCE))


@torch.no_grad()
def logits(llama: TransformersModel) -> Tensor:
    ids, mask = llama._padded([llama._tokens(prompt) for prompt in SOURCE])
    return llama.module(input_ids=ids, attention_mask=mask.long()).logits[mask]


def steered(model: TensorModel, act_map: ActMap, strength: float = 1.0) -> Tensor:
    """The output of a copy of a model that a map steers."""
    fresh = TensorModel(type(model.module)(), model.shape, model.dtype)
    fresh.module.load_state_dict(model.module.state_dict())
    with steer(fresh.module, act_map, strength):
        return output(fresh)


@contextlib.contextmanager
def recorded(module: nn.Module, seen: list[Any]) -> Generator[None]:
    """Inside the block the outputs of a module are appended to a list."""
    handle = module.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        yield
    finally:
        handle.remove()
