"""Watches the calls that a pipeline of diffusers makes to its text encoders and its diffusion model.

A pipeline is never changed. A copy of it gets stand-ins for its models, which share their weights and submodules; what
was put on these (maps, hooks of accelerate, compiled graphs) works as usual::

    watched(pipeline, {"transformer": around})      each call of the transformer becomes `around(call)`
    first_call(pipeline, arguments)                 what its first call gets; the diffusion model itself does not run
    examined(pipeline, arguments)                   what can be known of a pipeline from a few such calls
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import MapError, first_line
from .pipeline_arguments import Guidance, PipelineArguments
from .pipelines import denoiser_place, text_encoders, uncompiled, with_own_schedule

# Prompts that share neither their first nor their last token, and have different lengths.
# The long one has fewer tokens than any text encoder reads.
_SHORT, _LONG = "fox", " ".join(["many red houses by the sea and"] * 7) + " trees"
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
    signature = inspect.signature(cast("Callable[..., Any]", type(inner).forward))

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
        call: of the diffusion model.
        encoded: calls of text encoders, with what they returned.
    """

    call: Call
    encoded: list[tuple[Call, Any]] = field(default_factory=list[tuple[Call, Any]])


class _Reached(BaseException):
    """Ends the run of a pipeline at its diffusion model. Not an Exception, so that no pipeline swallows it."""


def first_call(pipeline: Any, arguments: Mapping[str, Any]) -> FirstCall:
    """Run a pipeline up to the first call of its diffusion model.

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
    places = text_encoders(pipeline)
    pipeline = watched(with_own_schedule(pipeline, slice(1)), {**dict.fromkeys(places, encode)})
    pipeline = watched(pipeline, {denoiser_place(pipeline): stop})
    try:
        with torch.no_grad():
            pipeline(**arguments)
    except _Reached:
        return FirstCall(reached[0], encoded)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        raise MapError(f"A {kind} cannot be run from a prompt alone: {first_line(error)}") from error
    raise MapError(f"A {kind} cannot be steered: it does not call its {denoiser_place(pipeline)} in each step.")


@dataclass(frozen=True)
class CallPlan:
    """How a pipeline calls its models.

    Attributes:
        off: how guidance is turned off.
        conditioning: paths to what the diffusion model gets of a prompt, see `Call.by_row`.
        has_fixed_length: whether all prompts are padded to the same length.
        runs_together: whether the rows of a call belong to different prompts, or else each prompt has its own calls.
        templates: for the text encoders, by attribute, the number of tokens that all prompts share at the beginning
            and at the end.
    """

    off: Guidance
    conditioning: tuple[str, ...]
    has_fixed_length: bool
    runs_together: bool
    templates: Mapping[str, tuple[int, int]]


def examined(pipeline: Any, arguments: PipelineArguments) -> CallPlan:
    """Find out how a pipeline calls its models, from a few prompts that run up to its diffusion model.

    Raises:
        MapError: it cannot be run from a prompt alone, or its guidance cannot be turned off.
    """

    def first(prompts: Sequence[str], guidance: Guidance) -> FirstCall:
        given = arguments.of(prompts, [0] * len(prompts), num_inference_steps=STEPS, output_type="latent")
        return first_call(guidance.applied(pipeline), {**given, **guidance.arguments})

    for off in arguments.without_guidance():
        short, long = first([_SHORT], off), first([_LONG], off)
        paths = _conditioning(short.call, long.call)
        if short.call.rows == 1 and paths:
            break
    else:
        raise MapError(f"A {type(pipeline).__name__} cannot be fitted: its guidance cannot be turned off.")
    rows = short.call.by_row(), long.call.by_row()
    return CallPlan(
        off,
        paths,
        has_fixed_length=all(rows[0][path][0].shape == rows[1][path][0].shape for path in paths),
        runs_together=_runs_together(lambda: first([_SHORT, _LONG], off)),
        templates=_templates(short.encoded, long.encoded),
    )


def _conditioning(one: Call, other: Call) -> tuple[str, ...]:
    rows, others = one.by_row(), other.by_row()
    return tuple(path for path in rows if path in others and not same(rows[path][0], others[path][0]))


def _runs_together(run: Callable[[], FirstCall]) -> bool:
    try:
        found = run()
    except MapError:
        return False
    return found.call.rows == 2 and all(call.rows == 2 for call, _ in found.encoded)


def _templates(one: Sequence[tuple[Call, Any]], other: Sequence[tuple[Call, Any]]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for (call, _), (other_call, _) in zip(one, other, strict=False):
        ids, other_ids = (_tokens(c) for c in (call, other_call))
        if ids and other_ids and call.place not in found:
            found[call.place] = _shared(ids, other_ids), _shared(ids[::-1], other_ids[::-1])
    return found


def _tokens(call: Call) -> list[int]:
    """The tokens of the first row, without padding."""
    ids, mask = call.arguments.get("input_ids"), token_mask(call)
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return []
    return cast("list[int]", (ids[0] if mask is None else ids[0][mask[0]]).tolist())


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def token_mask(call: Call) -> Tensor | None:
    """The attention mask that a text encoder gets, bool ``[rows, tokens]``; None if all tokens count."""
    mask = call.arguments.get("attention_mask")
    return mask != 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None


def own_tokens(mask: Tensor, template: tuple[int, int]) -> Tensor:
    """A mask without the tokens of the template, in rows that have others.

    Example:
        >>> own_tokens(torch.tensor([[False, True, True, True]]), (1, 1))
        tensor([[False, False,  True, False]])
    """
    before, after = template
    number, total = mask.cumsum(1), mask.sum(1, keepdim=True)
    own = mask & (number > before) & (number <= total - after)
    return torch.where(own.any(1, keepdim=True), own, mask)
