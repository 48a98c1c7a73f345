"""Reads and replaces the output of a submodule by swapping its ``forward``, and finds submodules by name.

Forward hooks are not used, because a compiled graph silently ignores hooks that are added later, while it guards on a
swapped ``forward``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from .interrupts import Restoring
from .layers import WRAPPED

Forward = Callable[..., Any]
# The parameter of models of transformers that shows which tokens are not padding.
ATTENTION_MASK = "attention_mask"

_ABSENT = object()
# Name parts that wrappers insert: those of compiled modules, and of layers that `peft` adapts or replaces.
_INSERTED = ("_orig_mod", *WRAPPED)
# Name parts before the layers of a language model.
_AROUND_LAYERS = ("model", "language_model", "text_model")


def own_forward(module: nn.Module) -> object:
    """The ``forward`` entry of the module's own ``__dict__``, for `restore_forward`."""
    return module.__dict__.get("forward", _ABSENT)


def restore_forward(attributes: dict[str, Any], before: object) -> None:
    """Restore the ``forward`` entry of a module's ``__dict__``, or remove it if there was none.

    Example:
        >>> module = nn.Identity()
        >>> before = own_forward(module)
        >>> module.forward = lambda x: x + 1
        >>> restore_forward(module.__dict__, before)
        >>> "forward" in module.__dict__
        False
    """
    if before is _ABSENT:
        attributes.pop("forward", None)
    else:
        attributes["forward"] = before


class intercepted(Restoring):  # noqa: N801  (used like a function)
    """A context manager that passes the output of each module through a handler.

    All modules are restored even after an interrupt (Ctrl-C), see `act_core.interrupts`.

    Args:
        handlers: by module, a function that takes its output and returns the output to use.

    Example:
        >>> module = nn.Identity()
        >>> with intercepted({module: lambda x: x + 1}):
        ...     module(1)
        2
        >>> module(1)
        1
    """

    def __init__(self, handlers: Mapping[nn.Module, Callable[[Any], Any]]) -> None:
        self._handlers = handlers
        self._before: dict[nn.Module, object] = {}

    def _patch(self) -> None:
        for module, handler in self._handlers.items():
            self._before[module] = own_forward(module)
            module.__dict__["forward"] = _through(module.forward, handler)

    def _restore(self) -> None:
        for module, forward in self._before.items():
            restore_forward(module.__dict__, forward)
        self._before.clear()


def _through(forward: Forward, handler: Callable[[Any], Any]) -> Forward:
    def intercepting(*args: Any, **kwargs: Any) -> Any:
        return handler(forward(*args, **kwargs))

    return intercepting


def submodules(root: nn.Module) -> dict[str, nn.Module]:
    """Submodules by dotted name; a compiled module is replaced by the module that it wraps.

    Example:
        >>> list(submodules(nn.Sequential(nn.Identity())))
        ['', '0']
    """
    named: dict[str, nn.Module] = {}
    modules = cast("Iterable[tuple[str, nn.Module]]", root.named_modules(remove_duplicate=False))
    for name, module in modules:
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        named[".".join(parts)] = module  # the wrapped module comes after its wrapper and takes its place
    return named


def inner_model(module: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and `peft`, whose names `canonical_name` removes; other modules as they are.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> peft = nn.ModuleDict({"base_model": nn.ModuleDict({"model": model})})
        >>> inner_model(nn.ModuleDict({"_orig_mod": peft})) is model
        True
    """
    while True:
        parts = dict(module.named_children())
        inner = parts.get("_orig_mod")
        if inner is None and "base_model" in parts:
            inner = dict(parts["base_model"].named_children()).get("model")
        if inner is None:
            return module
        module = inner


def token_reader(model: nn.Module) -> nn.Module | None:
    """The module of a model of transformers that gets the attention mask of all its calls; None for other models.

    Example:
        >>> token_reader(nn.Linear(1, 1)) is None
        True
    """
    base = getattr(inner_model(model), "base_model", None)
    if not isinstance(base, nn.Module):
        return None
    base = inner_model(base)
    return base if {"input_ids", ATTENTION_MASK} <= {*inspect.signature(type(base).forward).parameters} else None


def canonical_name(name: str) -> str:
    """The name of a submodule or parameter without the parts that depend on library versions and wrappers.

    These are a leading ``text_model.``, which text encoders have in transformers 4 and in ComfyUI and some lack in
    transformers 5; the ``base_model.model.`` of a `peft` model; and the names of wrapped layers.

    Example:
        >>> canonical_name("base_model.model.text_model.encoder.layers.0.mlp.fc2.base_layer")
        'encoder.layers.0.mlp.fc2'
    """
    parts = [part for part in name.split(".") if part not in _INSERTED]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    if parts[0:1] == ["text_model"] and len(parts) > 1:
        parts = parts[1:]
    return ".".join(parts)


def bare_name(name: str) -> str:
    """The `canonical_name` of a part of a language model, without the names of the modules around its layers.

    These differ between a model with a head and one without, between one that also reads pictures and its text part,
    and between transformers and ComfyUI.

    Example:
        >>> bare_name("model.language_model.layers.0.mlp"), bare_name("model.visual.blocks.0.mlp")
        ('layers.0.mlp', 'visual.blocks.0.mlp')
    """
    parts = canonical_name(name).split(".")
    while len(parts) > 1 and parts[0] in _AROUND_LAYERS:
        parts = parts[1:]
    return ".".join(parts)


def find_submodules(root: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Submodules by the given names, which may come from another version or wrapping of the model.

    An exact match takes precedence over one of the `canonical_name`, and that over one of the `bare_name`.

    Example:
        >>> wrapped = nn.ModuleDict({"text_model": nn.ModuleDict({"norm": nn.Identity()})})
        >>> find_submodules(wrapped, ["norm", "text_model.norm", "other"])
        {'norm': Identity(), 'text_model.norm': Identity()}
    """
    named = submodules(root)
    canonical: dict[str, nn.Module] = {}
    # Names that are canonical already come first, then wrappers before what they wrap.
    for name in sorted(named, key=lambda name: name != canonical_name(name)):
        canonical.setdefault(canonical_name(name), named[name])
    found = {name: named.get(name, canonical.get(canonical_name(name))) for name in names}
    if None in found.values():
        bare: dict[str, nn.Module] = {}
        for name in named:
            bare.setdefault(bare_name(name), named[name])
        found = {name: bare.get(bare_name(name)) if module is None else module for name, module in found.items()}
    return {name: module for name, module in found.items() if module is not None}


def has_names(root: nn.Module, names: Iterable[str]) -> bool:
    """Whether a model has submodules of these names, up to what `canonical_name` removes.

    Example:
        >>> has_names(nn.ModuleDict({"text_model": nn.ModuleDict({"norm": nn.Identity()})}), ["norm"])
        True
    """
    return {canonical_name(name) for name in names} <= {canonical_name(name) for name in submodules(root)}


def output_tensors(output: Any) -> dict[int | None, Tensor]:
    """The tensors in a submodule's output: a lone tensor under None, several under their index."""
    if isinstance(output, Tensor):
        return {None: output}
    if isinstance(output, (tuple, list)):
        parts = cast("tuple[object, ...] | list[object]", output)
        return {index: part for index, part in enumerate(parts) if isinstance(part, Tensor)}
    return {}


def output_tensor(output: Any, index: int | None) -> Tensor | None:
    """The tensor at an index of a submodule's output; None if it is absent.

    A lone tensor and the first of several count as the same, since libraries differ in whether a block also returns
    its cache.

    Example:
        >>> import torch
        >>> hidden, cache = torch.zeros(1), torch.ones(1)
        >>> output_tensor((hidden, cache), None) is hidden, output_tensor(hidden, 0) is hidden
        (True, True)
        >>> output_tensor(hidden, 1) is None
        True
    """
    tensors = output_tensors(output)
    other = {None: 0, 0: None}.get(index, index)
    return tensors.get(index, tensors.get(other))


def with_output(output: Any, index: int | None, tensor: Tensor) -> Any:
    """`output` with the tensor at `index` replaced; a lone tensor and the first of several count as the same."""
    if isinstance(output, Tensor):
        return tensor
    index = index or 0
    parts: list[object] = list(output)
    parts[index] = tensor
    # A named tuple is built from its fields, a plain tuple or list from an iterable.
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
