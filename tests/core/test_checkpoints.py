"""Gradients with checkpoints equal those without; modules are restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from act_core.fitting.checkpoints import blocks, checkpointed
from act_core.interception import intercepted, submodules


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return x + self.linear(self.norm(x)) * options["scale"], options["text"].tanh()


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x += self.linear(x.clone())
        return x, options["text"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([Block(), Block(), InPlace(), Block()])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = text = self.start(x)
        for block in self.blocks:
            x, text = block(x, options={"scale": 2.0, "text": text + x})
        return x + text


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(requires_grad=False)


def gradients(model: Model, *, checkpoints: bool) -> list[Tensor | None]:
    """Of offsets at a module before the blocks, inside one, at one, and nowhere."""
    offsets = [torch.full((4,), 0.1, requires_grad=True) for _ in range(4)]
    modules: list[nn.Module] = [
        model.start,
        model.blocks[1].get_submodule("norm"),
        model.blocks[3].get_submodule("linear"),
    ]
    handlers = {
        module: lambda out, offset=offset: out * (1 + offset) for module, offset in zip(modules, offsets, strict=False)
    }
    generator = torch.Generator().manual_seed(1)
    with intercepted(handlers), checkpointed([model] if checkpoints else [], offsets):
        loss = model(torch.randn(3, 4, generator=generator)).square().mean()
        return list(torch.autograd.grad(loss, offsets, allow_unused=True))


def test_gradients_are_as_without_checkpoints(model: Model) -> None:
    """To rounding: in float32, a copy of the same operations."""
    found, wanted = gradients(model, checkpoints=True), gradients(model, checkpoints=False)
    assert found[3] is None
    assert wanted[3] is None
    for one, other in zip(found[:3], wanted[:3], strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_blocks_keep_their_inputs_alone(model: Model) -> None:
    def kept(*, checkpoints: bool) -> int:
        sizes: list[int] = []
        x = torch.randn(3, 4, requires_grad=True)

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with (
            checkpointed([model] if checkpoints else [], [x]),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            model(x)
        return sum(sizes)

    assert kept(checkpoints=True) < 0.7 * kept(checkpoints=False)


def test_modules_are_restored(model: Model) -> None:
    training = [module.training for module in model.modules()]
    gradients(model, checkpoints=True)
    assert not any("forward" in module.__dict__ for module in submodules(model).values())
    assert [module.training for module in model.modules()] == training


def test_items_of_a_sequential_in_a_list_are_blocks() -> None:
    items = [nn.Identity(), nn.Identity(), nn.Identity()]
    model = nn.ModuleDict({"inner": nn.ModuleList([nn.Sequential(*items[:2]), items[2]])})
    assert blocks(model) == items
