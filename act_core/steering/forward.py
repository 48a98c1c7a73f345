"""The callable that stands in for a module's ``forward`` while maps steer it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import MapMismatchError
from ..interception import Forward, output_tensors, own_forward, restore_forward, with_output
from .composition import Layer, Slot


class SteeredForward:
    """Stands in for the ``forward`` of a module while maps steer it.

    There is one for each module, and it is used again whenever maps come back: a graph that was compiled with it
    stays valid.
    """

    def __init__(self) -> None:
        self.slots: dict[int | None, Slot] = {}
        self.forward: Forward | None = None
        self._before: object = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.forward is not None
        output = self.forward(*args, **kwargs)
        for index, slot in self.slots.items():
            if slot.layers and slot.steps:
                output = with_output(output, index, slot(_tensor_at(output, index, slot)))
        return output

    def add(self, module: nn.Module, output: int | None, layer: Layer) -> None:
        # In an order in which `remove` mends whatever an interrupt leaves half done.
        self.insert(output, layer)
        if self.forward is None:
            self._before = own_forward(module)
            self.forward = module.forward
            module.__dict__["forward"] = self

    def insert(self, output: int | None, layer: Layer) -> None:
        slot = self.slots.setdefault(output, Slot())
        layer.join(slot)
        slot.layers.append(layer)
        slot.recompose()

    def remove(self, module: nn.Module, layer: Layer) -> None:
        slot = layer.slot
        if slot is not None and layer in slot.layers:
            slot.layers.remove(layer)
            if slot.layers:
                slot.recompose()
        layer.leave()
        # Where somebody else has put a forward over this one since, it stays below that one and does nothing.
        if not any(self.layers()) and module.__dict__.get("forward") is self:
            restore_forward(module, self._before)
            self.forward = self._before = None  # they hold the module, which must stay free to be collected

    def layers(self) -> Iterator[Layer]:
        return (layer for slot in self.slots.values() for layer in slot.layers)


# Owned by the modules: an entry goes when its module goes.
FORWARDS: WeakKeyDictionary[nn.Module, SteeredForward] = WeakKeyDictionary()


def _tensor_at(output: Any, index: int | None, slot: Slot) -> Tensor:
    tensor = output_tensors(output).get(index)
    if tensor is None:
        raise MapMismatchError(
            f"Site {slot.layers[0].site.key} returns no such activation in this model; fit a map for it."
        )
    return tensor
