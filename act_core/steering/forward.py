"""The callable that stands in for a module's ``forward`` while maps steer it."""

from __future__ import annotations

import copy
import inspect
import operator
import threading
from collections.abc import Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from ..errors import MapMismatchError
from ..gates import token_mask
from ..interception import ATTENTION_MASK, Forward, output_tensor, own_forward, restore_forward, with_output
from .composition import Slot
from .layer import Gauge, Layer, TokenMask

# Held while maps are added and removed. Callers must not run the model in another thread meanwhile.
LOCK = threading.RLock()


class SteeredForward:
    """Stands in for the ``forward`` of a module while maps steer it.

    Each module keeps its instance for the next time that it is steered, so that graphs compiled with it stay valid. The
    instance refers to the module only while it is in the module's ``__dict__``, so the module can be garbage-collected.

    Attributes:
        slots: by index of the output; 0 for a lone tensor, too.
        gauges: of outputs whose tokens are counted, by index; kept for reuse.
        mask: of the tokens in the call that runs, if a gate needs it; kept for reuse.
        forward: the ``forward`` that it replaces.
    """

    def __init__(self, forward: Forward | None = None) -> None:
        self.slots: dict[int, Slot] = {}
        self.gauges: dict[int | None, Gauge] = {}
        self.mask = TokenMask()
        self.forward = forward
        self._measured_for: list[Layer] = []
        self._masked_for: list[Layer] = []
        self._mask_at = 0
        self._before: object = None
        self._module: ref[nn.Module] | None = None
        self._state: _UnsteeredState | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.forward is not None
        output = self._masked(self.forward, args, kwargs) if self._masked_for else self.forward(*args, **kwargs)
        if self._measured_for:
            for index, gauge in self.gauges.items():
                gauge.read(output_tensor(output, index))
        for index, slot in self.slots.items():
            if slot.layers and (slot.steps or slot.idle):
                output = _through(slot, output, index)
        return output

    def _masked(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a call whose attention mask is known to all gates that need it."""
        self.mask.present = token_mask(args[self._mask_at] if len(args) > self._mask_at else kwargs.get(ATTENTION_MASK))
        try:
            return forward(*args, **kwargs)
        finally:
            self.mask.present = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module is not steered."""
        return copy.deepcopy(self.forward, memo)

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        # Pickled without a reference to this library: a model saved while it is steered loads without the library.
        return operator.itemgetter(0), ((self.forward,),)

    @property
    def layers(self) -> Iterator[Layer]:
        """All layers that act here."""
        return (layer for slot in self.slots.values() for layer in slot.layers)

    def insert(self, output: int | None, layer: Layer) -> None:
        """Add a layer to an output, after those that are present."""
        self.slots.setdefault(output or 0, Slot()).insert(layer)

    def measure(self, layer: Layer) -> None:
        """Count the tokens of an output at each call, for a layer of another module that steers a segment."""
        segment = layer.site.segment
        layer.gauge = self.gauges.setdefault(segment and segment.output, Gauge())
        layer.gauge.tokens = None
        self._measured_for.append(layer)

    def read_mask(self, position: int, layer: Layer) -> None:
        """Show the attention mask of each call, at a position of its arguments, to the gate of a layer."""
        layer.mask = self.mask
        self._mask_at = position
        self._masked_for.append(layer)

    def discard(self, layer: Layer) -> None:
        """Remove a layer, or stop counting tokens or reading the mask for it."""
        for helped in (self._measured_for, self._masked_for):
            if layer in helped:
                helped.remove(layer)
                return
        layer.leave()

    @property
    def is_used(self) -> bool:
        """Whether any layer acts here, or needs the number of tokens or their mask."""
        return bool(self._measured_for or self._masked_for) or any(self.layers)

    def is_on(self, module: nn.Module) -> bool:
        """Whether it was installed on this module, rather than on one that this is a copy of."""
        return self._module is not None and self._module() is module

    def put_on(self, module: nn.Module) -> None:
        """Replace the module's ``forward``."""
        if self._module is None:
            self._module = ref(module)
            self._state = _UnsteeredState(self._module) if _is_copied_by_state(module) else None
        self._before, self.forward = own_forward(module), module.forward
        module.__dict__["forward"] = self
        if self._state is not None:
            module.__dict__.setdefault("__getstate__", self._state)

    def take_off(self, module: nn.Module) -> None:
        """Restore the module's ``forward``, and keep this instance for the next time.

        If another library has wrapped this instance, the wrapper may still be in use: the instance stays below it and
        passes everything through. If this instance was removed along with such a wrapper, it is gone. In both cases the
        next map gets a new one.
        """
        if self._state is not None and module.__dict__.get("__getstate__") is self._state:
            del module.__dict__["__getstate__"]
        if module.__dict__.get("forward") is self:
            restore_forward(module.__dict__, self._before)
            self._before = self.forward = None
            _idle[module] = self

    @property
    def before(self) -> object:
        """The previous entry of the module's own ``__dict__``, see `own_forward`."""
        return self._before


# Instances that are not in use; they must not refer to their module, or entries would never be dropped.
_idle: WeakKeyDictionary[nn.Module, SteeredForward] = WeakKeyDictionary()
# What acts on each module, and through which of its forwards.
_acting: WeakKeyDictionary[nn.Module, list[tuple[Layer, ref[SteeredForward]]]] = WeakKeyDictionary()


def add_layer(module: nn.Module, output: int | None, layer: Layer) -> None:
    """Add a layer to an output of a module, after those that are present."""
    _forward_for(module, layer).insert(output, layer)


def add_gauge(module: nn.Module, layer: Layer) -> None:
    """Count the tokens of the gauge of a layer at each call; the layer is added later, to another module."""
    _forward_for(module, layer).measure(layer)


def add_mask(module: nn.Module, layer: Layer) -> None:
    """Show the attention mask of each call of a module, see `token_reader`, to a layer that is added later."""
    position = list(inspect.signature(type(module).forward).parameters).index(ATTENTION_MASK) - 1  # without self
    _forward_for(module, layer).read_mask(position, layer)


def _forward_for(module: nn.Module, layer: Layer) -> SteeredForward:
    forward = module.__dict__.get("forward")
    if not isinstance(forward, SteeredForward) or not forward.is_on(module):
        forward = _idle.pop(module, None) or SteeredForward()
        forward.put_on(module)
    _acting.setdefault(module, []).append((layer, ref(forward)))
    return forward


def remove_layer(module: nn.Module, layer: Layer) -> None:
    """Remove a layer or its gauge from a module, if present; after the last one, restore the module's ``forward``."""
    acting = _acting.get(module, [])
    for entry in acting:
        if entry[0] is layer:
            break
    else:
        return
    forward = entry[1]()
    if forward is None:
        layer.leave()
    else:
        forward.discard(layer)
        if not forward.is_used:
            forward.take_off(module)
    acting.remove(entry)
    if not acting:
        del _acting[module]


def layers_on(module: nn.Module) -> list[Layer]:
    """The layers that act on a module, in the order in which they were added."""
    return [layer for layer, _ in _acting.get(module, ())]


def active_maps(root: nn.Module) -> tuple[str, ...]:
    """Titles of the maps that steer a module or its submodules at this moment.

    Example:
        >>> active_maps(nn.Identity())
        ()
    """
    layers = [layer for module in root.modules() for layer in layers_on(module) if layer.strength]
    return tuple(dict.fromkeys(layer.act_map.called for layer in layers))


class _UnsteeredState:
    """Replaces ``__getstate__``, so that copies and pickles of a steered module leave out the maps.

    `SteeredForward` alone would leave an attribute ``forward`` in the copy, where the module itself has none.
    """

    def __init__(self, module: ref[nn.Module]) -> None:
        self._module = module

    def __call__(self) -> Any:
        module = self._module()
        assert module is not None
        by_class = getattr(type(module), "__getstate__", None)
        state = module.__dict__ if by_class is None else by_class(module)
        if not isinstance(state, dict):
            return state
        state = dict(cast("dict[str, Any]", state))
        state.pop("__getstate__", None)
        if isinstance(forward := state.get("forward"), SteeredForward):
            restore_forward(state, forward.before)
        return state


def _is_copied_by_state(module: nn.Module) -> bool:
    """Whether copies and pickles of a module are made from its ``__getstate__``."""
    kind = type(module)
    by_state = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return by_state and not hasattr(kind, "__deepcopy__") and "__getstate__" not in module.__dict__


def _through(slot: Slot, output: Any, index: int) -> Any:
    """An output with the tensor at an index sent through a slot."""
    tensor = output if index == 0 and isinstance(output, Tensor) else output_tensor(output, index)
    if tensor is None:
        if slot.steps:
            raise MapMismatchError(
                f"Site {slot.layers[0].site.key} does not return the activation that is steered; fit a map for this "
                "model."
            )
        return output
    steered = slot(tensor)
    if output is tensor:
        return steered
    return output if steered is tensor else with_output(output, index, steered)
