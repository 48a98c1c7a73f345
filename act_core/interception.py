"""Reading and replacing what a submodule returns, by swapping its ``forward``.

Forward hooks are not used: a graph compiled earlier ignores, silently, hooks that are added later, while a
swapped ``forward`` is guarded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

Forward = Callable[..., Any]


_ABSENT = object()


def own_forward(module: nn.Module) -> object:
    """What stands at ``forward`` in the module's own ``__dict__``, to be given to `restore_forward`."""
    return module.__dict__.get("forward", _ABSENT)


def restore_forward(module: nn.Module, before: object) -> None:
    """Make ``module.forward`` exactly what it was."""
    if before is _ABSENT:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = before


@contextmanager
def intercepted(handlers: Mapping[nn.Module, Callable[[Any], Any]]) -> Generator[None, None, None]:
    """Inside the block each module returns what its handler makes of its output."""
    before = {module: own_forward(module) for module in handlers}
    try:
        for module, handler in handlers.items():
            module.__dict__["forward"] = _through(module.forward, handler)
        yield
    finally:
        for module, forward in before.items():
            restore_forward(module, forward)


def _through(forward: Forward, handler: Callable[[Any], Any]) -> Forward:
    def intercepting(*args: Any, **kwargs: Any) -> Any:
        return handler(forward(*args, **kwargs))

    return intercepting


def submodules(root: nn.Module) -> dict[str, nn.Module]:
    """Submodules by dotted name; a compiled module stands under its own name as the module it wraps."""
    named: dict[str, nn.Module] = {}
    modules = cast("Iterable[tuple[str, nn.Module]]", root.named_modules(remove_duplicate=False))
    for name, module in modules:
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        named[".".join(parts)] = module  # the wrapped module comes after its wrapper and takes its place
    return named


def output_tensors(output: Any) -> dict[int | None, Tensor]:
    """The tensors in what a submodule returned: one under None, or several under their index."""
    if isinstance(output, Tensor):
        return {None: output}
    if isinstance(output, (tuple, list)):
        parts = cast("tuple[object, ...] | list[object]", output)
        return {index: part for index, part in enumerate(parts) if isinstance(part, Tensor)}
    return {}


def with_output(output: Any, index: int | None, tensor: Tensor) -> Any:
    """`output` with the tensor at `index` replaced."""
    if index is None:
        return tensor
    parts: list[object] = list(output)
    parts[index] = tensor
    # A named tuple is built from its fields, a plain tuple or list from an iterable.
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
