"""Gradient checkpointing for a refinement: blocks keep their inputs alone and run again when their gradient is needed.

PyTorch's own checkpoints are not used, since some models change activations in place, which must not pass unnoticed.
Here each block is differentiated by itself, so PyTorch checks its activations as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from ..interception import own_forward, restore_forward
from ..interrupts import Restoring

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class checkpointed(Restoring):  # noqa: N801  (used like a function)
    """A context manager inside which the blocks of modules are checkpointed.

    Args:
        roots: modules.
        parameters: everything else that gets a gradient, wherever it acts.
        recorded: a list to which handlers inside the blocks append tensors that the loss depends on.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> scale = torch.ones(1, requires_grad=True)
        >>> with checkpointed([model], [scale]):
        ...     (gradient,) = torch.autograd.grad(model(scale).sum(), scale)
        >>> "forward" in model[0].__dict__
        False
    """

    def __init__(
        self, roots: Iterable[nn.Module], parameters: Sequence[Tensor], recorded: list[Tensor] | None = None
    ) -> None:
        self._blocks = [block for root in roots for block in blocks(root)]
        self._parameters = parameters
        self._recorded: list[Tensor] = [] if recorded is None else recorded
        self._before: dict[nn.Module, object] = {}

    def _patch(self) -> None:
        for block in self._blocks:
            self._before[block] = own_forward(block)
            block.__dict__["forward"] = _Checkpoint(block.forward, self._parameters, self._recorded)

    def _restore(self) -> None:
        for block, forward in self._before.items():
            restore_forward(block.__dict__, forward)
        self._before.clear()


def blocks(root: nn.Module) -> list[nn.Module]:
    """The outermost modules in lists of modules, such as the blocks of a transformer."""
    found: list[nn.Module] = []
    for child in root.children():
        if not isinstance(child, _CONTAINERS):
            found += blocks(child)
        else:
            found += _items(child)
    return found


def _items(container: nn.Module) -> list[nn.Module]:
    # Some models call the items of a Sequential one by one.
    return [
        found
        for child in container.children()
        for found in (_items(child) if isinstance(child, _CONTAINERS) else [child])
    ]


class _Checkpoint:
    """Stands in for the ``forward`` of a block."""

    def __init__(self, forward: Callable[..., Any], parameters: Sequence[Tensor], recorded: list[Tensor]) -> None:
        self._forward = forward
        self._parameters = parameters
        self._recorded = recorded
        self._is_possible = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_possible or not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        leaves, spec = tree.tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        form: list[Any] = []

        def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            own = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                own[place] = tensor
            given, named = tree.tree_unflatten(own, spec)
            before = len(self._recorded)
            form[:] = tree.tree_flatten(self._forward(*given, **named))
            # What was recorded inside gets its gradient as further outputs of the block.
            inside = self._recorded[before:]
            del self._recorded[before:]
            return (*(leaf for leaf in form[0] if isinstance(leaf, Tensor)), *inside)

        # Tensors that were made in inference mode cannot be kept for a gradient.
        inputs = [leaf.clone() if leaf.is_inference() else leaf for leaf in (leaves[place] for place in places)]
        outputs = cast("Any", _Function.apply(run, len(inputs), *inputs, *self._parameters))
        if outputs is None:
            # Whoever called the block may rely on what it changes in its inputs.
            self._is_possible = False
            return self._forward(*args, **kwargs)
        values = iter(outputs)
        whole = tree.tree_unflatten([next(values) if isinstance(leaf, Tensor) else leaf for leaf in form[0]], form[1])
        self._recorded.extend(values)
        return whole


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Sequence[Tensor]], Any], count: int, *tensors: Tensor) -> Any:
        copies = [tensor.detach().clone() for tensor in tensors[:count]]
        versions = [copy._version for copy in copies]  # pyright: ignore[reportPrivateUsage]
        with torch.no_grad():
            outputs = run(copies)
        if versions != [copy._version for copy in copies]:  # pyright: ignore[reportPrivateUsage]
            return None
        ctx.run, ctx.count, ctx.parameters = run, count, tensors[count:]
        ctx.save_for_backward(*tensors[:count])
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        needed = ctx.needs_input_grad[2 : 2 + ctx.count]
        with torch.enable_grad():
            inputs = [
                tensor.detach().requires_grad_(wanted) for tensor, wanted in zip(ctx.saved_tensors, needed, strict=True)
            ]
            outputs = ctx.run(inputs)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        sources = [tensor for tensor, wanted in zip(inputs, needed, strict=True) if wanted]
        if not pairs:
            return (None,) * (2 + ctx.count + len(ctx.parameters))
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [*sources, *ctx.parameters],
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        )
        own = [next(found) if wanted else None for wanted in needed]
        return (None, None, *own, *found)
