"""How a pipeline of diffusers calls its models, found from a few prompts that run up to its diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MapError
from .pipeline_arguments import Guidance, PipelineArguments
from .pipeline_calls import STEPS, Call, FirstCall, first_call, same
from .pipelines import removes_padding
from .prompt_tokens import PromptTokens

# Prompts that share neither their first nor their last token, and have different lengths.
# The long one has fewer tokens than any text encoder reads.
_SHORT, _LONG = "fox", " ".join(["many red houses by the sea and"] * 7) + " trees"


@dataclass(frozen=True)
class CallPlan:
    """How a pipeline calls its models.

    Attributes:
        off: how guidance is turned off.
        conditioning: paths to what the diffusion model gets of a prompt, see `Call.by_row`.
        has_fixed_length: whether the diffusion model reads all prompts padded to the same length.
        runs_together: whether the rows of a call belong to different prompts, or else each prompt has its own calls.
        tokens: finds the tokens of prompts in the calls of text encoders.
        counted: the attribute of the text encoder whose tokens show the length of a prompt, see `PromptTokens`.
    """

    off: Guidance
    conditioning: tuple[str, ...]
    has_fixed_length: bool
    runs_together: bool
    tokens: PromptTokens
    counted: str | None


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
    tokens = PromptTokens(pipeline, short, long)
    is_padded = all(rows[0][path][0].shape == rows[1][path][0].shape for path in paths)
    return CallPlan(
        off,
        paths,
        has_fixed_length=is_padded and not removes_padding(pipeline),
        runs_together=_runs_together(lambda: first([_SHORT, _LONG], off)),
        tokens=tokens,
        counted=tokens.counted(short),
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
