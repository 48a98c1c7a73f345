"""Freezes the weights of a model so that gradients can pass through it, and restores them afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import NotDifferentiableError
from ..interrupts import Restoring


class frozen(Restoring):  # noqa: N801  (used like a function)
    """A context manager inside which a model can be differentiated, but none of its weights gets a gradient.

    Weights that were loaded in inference mode cannot be used for gradients; inside the block, tensors on the same
    memory stand in for them. No weight is copied, and afterwards the module holds the very tensors that it held before.

    Args:
        roots: modules.

    Raises:
        NotDifferentiableError: weights that were loaded in inference mode in a quantised form.

    Example:
        >>> with torch.inference_mode():
        ...     layer = nn.Linear(1, 1)
        >>> with frozen([layer]):
        ...     output = layer(torch.ones(1, 1, requires_grad=True))
        >>> output.requires_grad, layer.weight.grad
        (True, None)
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self._modules = {module for root in roots for module in root.modules()}
        self._trainable: list[nn.Parameter] = []
        self._before: list[tuple[dict[str, Any], str, Tensor]] = []

    def _patch(self) -> None:
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
                tensors = cast("dict[str, Any]", tensors)
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if tensor.is_inference():
                        if type(tensor) not in (Tensor, nn.Parameter):
                            raise NotDifferentiableError(
                                f"The weights are quantised ({type(tensor).__name__}), so the model cannot be "
                                "differentiated",
                                "load it in bfloat16, or fit with transport",
                            )
                        self._before.append((tensors, name, tensor))
                    elif isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                        self._trainable.append(tensor)
        for tensors, name, tensor in self._before:
            tensors[name] = _outside_inference_mode(tensor)
        for parameter in self._trainable:
            parameter.requires_grad_(False)

    def _restore(self) -> None:
        for tensors, name, tensor in self._before:
            tensors[name] = tensor
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._before.clear()
        self._trainable.clear()


def _outside_inference_mode(tensor: Tensor) -> Tensor:
    """A tensor on the same memory that gradients can pass by."""
    with torch.inference_mode(False):
        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        return nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain
