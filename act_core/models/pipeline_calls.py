"""Watches the calls that a pipeline of diffusers makes to its text encoders and its diffusion model.

A pipeline is never changed. A copy of it gets stand-ins for its models, which share their weights and submodules; what
was put on these (maps, hooks of accelerate, compiled graphs) works as usual::

    watched(pipeline, {"transformer": around})      each call of the transformer becomes `around(call)`
    first_call(pipeline, arguments)                 what its first call gets; the diffusion model itself does not run
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import MapError, first_line
from ..gates import token_mask
from ..interception import ATTENTION_MASK, inner_model
from .pipelines import denoiser_place, text_encoders, uncompiled, with_own_schedule

# Length of the schedule whose first step a fit runs; that noisiest step hardly depends on the length.
STEPS = 20


@dataclass(frozen=True)
class Call:
    """A call of a model.

    Attributes:
        place: the attribute of the pipeline that holds the model.
        arguments: by name of the parameter.
        run: makes the call.
    """

    place: str
    arguments: Mapping[str, Any]
    run: Callable[[], Any]

    @property
    def rows(self) -> int:
        """The number of rows of the first argument."""
        first: Any = next(iter(self.arguments.values()), None)
        return len(cast("Sequence[Any]", first)) if isinstance(first, (Tensor, list, tuple)) else 0

    @property
    def token_mask(self) -> Tensor | None:
        """The mask of tokens, False at padding, that the model is called with; see `act_core.gates.token_mask`."""
        return token_mask(self.arguments.get(ATTENTION_MASK))

    def by_row(self) -> dict[str, list[Tensor]]:
        """What each row gets, by path: of every argument that has as many rows as the call."""
        return dict(_by_row("", self.arguments, self.rows))


def _by_row(path: str, values: Mapping[str, Any], rows: int) -> list[tuple[str, list[Tensor]]]:
    found: list[tuple[str, list[Tensor]]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _by_row(f"{path}{name}.", cast("Mapping[str, Any]", value), rows)
        elif isinstance(value, Tensor):
            if value.ndim and value.shape[0] == rows:
                found.append((path + name, list(value)))
        elif isinstance(value, (list, tuple)):
            parts = cast("Sequence[Any]", value)
            if len(parts) == rows and all(isinstance(part, Tensor) for part in parts):
                found.append((path + name, list(parts)))
            else:
                found += _by_row(f"{path}{name}.", {str(i): part for i, part in enumerate(parts)}, rows)
    return found


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def watched(pipeline: Any, around: Mapping[str, Callable[[Call], Any]]) -> Any:
    """A copy of a pipeline in which a function is called in place of each model, by the attribute that holds it."""
    pipeline = copy.copy(pipeline)
    for place, function in around.items():
        setattr(pipeline, place, _stand_in(place, getattr(pipeline, place), function))
    return pipeline


def _stand_in(place: str, module: Any, around: Callable[[Call], Any]) -> Any:
    inner: Any = uncompiled(module)
    # A wrapper of `peft` passes on whatever it gets.
    signature = inspect.signature(type(inner_model(inner)).forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(inner, *args, **kwargs).arguments
        given = dict(list(bound.items())[1:])
        given |= given.pop("kwargs", {})
        return around(Call(place, given, lambda: module(*args, **kwargs)))

    # Of the same class and with the same attributes, since pipelines read some; hooks run where the module runs.
    stand_in = copy.copy(inner)
    for name, value in cast("dict[str, Any]", vars(inner)).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs")):
            stand_in.__dict__[name] = type(value)()
    stand_in.__dict__["forward"] = forward
    return stand_in


@dataclass
class FirstCall:
    """The first call of the diffusion model, and the calls of text encoders before it.

    Attributes:
        call: of the diffusion model, or of the text encoder that ends the run.
        encoded: calls of text encoders, with what they returned.
    """

    call: Call
    encoded: list[tuple[Call, Any]] = field(default_factory=list[tuple[Call, Any]])


def called(pipeline: Any, arguments: Mapping[str, Any]) -> Any:
    """What a pipeline returns; gradients pass by it where they are recorded."""
    # Pipelines turn gradients off by a decorator.
    run = inspect.unwrap(type(pipeline).__call__) if torch.is_grad_enabled() else type(pipeline).__call__
    return run(pipeline, **arguments)


class _Reached(BaseException):
    """Ends the run of a pipeline at its diffusion model. Not an Exception, so that no pipeline swallows it."""


def first_call(
    pipeline: Any, arguments: Mapping[str, Any], encoder: str | None = None, *, gradients: bool = False
) -> FirstCall:
    """Run a pipeline up to the first call of its diffusion model.

    Args:
        pipeline: of diffusers.
        arguments: to call it with.
        encoder: the attribute of a text encoder whose call ends the run, too.
        gradients: whether gradients can pass by its text encoders.

    Raises:
        MapError: it fails before, or does not call its diffusion model.
    """
    encoded: list[tuple[Call, Any]] = []
    reached: list[Call] = []

    def encode(call: Call) -> Any:
        output = call.run()
        encoded.append((call, output))
        return output

    def stop(call: Call) -> Any:
        reached.append(call)
        raise _Reached

    kind = type(pipeline).__name__
    around = {**dict.fromkeys(text_encoders(pipeline), encode), denoiser_place(pipeline): stop}
    if encoder is not None:
        around[encoder] = stop
    pipeline = watched(with_own_schedule(pipeline, slice(1)), around)
    try:
        with nullcontext() if gradients else torch.no_grad():
            called(pipeline, arguments)
    except _Reached:
        return FirstCall(reached[0], encoded)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        raise MapError(f"A {kind} cannot be run from a prompt alone: {first_line(error)}") from error
    raise MapError(f"A {kind} cannot be steered: it does not call its {denoiser_place(pipeline)} in each step.")
