"""Which tokens of a text encoder in a pipeline of diffusers belong to the prompt itself: those that a fit pools."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .pipeline_calls import Call, FirstCall
from .pipelines import is_clip, text_encoders, uncompiled

logger = logging.getLogger(__name__)

_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")


class PromptTokens:
    """Finds the tokens of prompts, without padding and without the template around every prompt.

    All tokens of CLIP count, since its padding is part of what diffusion models were trained on.

    Args:
        pipeline: of diffusers.
        one, other: what two prompts of different first, last and number of tokens lead to.

    Attributes:
        places: the attributes of the text encoders whose tokens do not all count.
    """

    def __init__(self, pipeline: Any, one: FirstCall, other: FirstCall) -> None:
        self._padding = _padding(pipeline)
        self.places = tuple(self._padding)
        self._templates: dict[str, tuple[int, int]] = {}
        for (call, _), (other_call, _) in zip(one.encoded, other.encoded, strict=False):
            ids, other_ids = self._ids(call), self._ids(other_call)
            if ids and other_ids:
                template = _shared(ids, other_ids), _shared(ids[::-1], other_ids[::-1])
                self._templates.setdefault(call.place, template)

    def mask(self, call: Call) -> Tensor | None:
        """Bool ``[rows, tokens]``, True at the tokens of the prompts in a call of a text encoder.

        None if all count.
        """
        mask = self._without_padding(call)
        return None if mask is None else own_tokens(mask, self._templates.get(call.place, (0, 0)))

    def counted(self, first: FirstCall) -> str | None:
        """The attribute of the text encoder whose tokens show how long a prompt is; None if they do not.

        Then `length` is known before the text encoder runs.
        """
        calls = [call for call, _ in first.encoded if call.place in self.places]
        return calls[0].place if len(calls) == 1 and _input_ids(calls[0]) is not None else None

    def length(self, call: Call) -> int:
        """The number of tokens that the first row of a call of the text encoder `counted` has, with the template."""
        # Without a mask, padding is read like a prompt.
        return len(call.arguments["input_ids"][0]) if (mask := call.token_mask) is None else int(mask[0].sum())

    def _without_padding(self, call: Call) -> Tensor | None:
        if call.place not in self._padding:
            return None
        ids, pad = _input_ids(call), self._padding[call.place]
        if (mask := call.token_mask) is not None:
            return mask
        return None if ids is None or pad is None else without_padding(ids, pad)

    def _ids(self, call: Call) -> list[int]:
        """The tokens of the first row, without padding."""
        ids, mask = _input_ids(call), self._without_padding(call)
        return [] if ids is None else cast("list[int]", (ids[0] if mask is None else ids[0][mask[0]]).tolist())


def warn_of_long(pipeline: Any, prompts: Sequence[str]) -> None:
    """Pipelines silently truncate prompts that are too long for their text encoders."""
    found: list[Any] = [getattr(pipeline, name, None) for name in _TOKENIZERS]
    tokenizers = [tokenizer for tokenizer in found if hasattr(tokenizer, "model_max_length")]
    if not tokenizers:
        return
    shortest = min(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
    most = shortest.model_max_length
    for text in dict.fromkeys(prompts):
        length = len(shortest(text, truncation=False, verbose=False)["input_ids"])
        if length > most:
            logger.warning("%r has %d tokens, of which a text encoder reads the first %d.", text, length, most)


def own_tokens(mask: Tensor, template: tuple[int, int]) -> Tensor:
    """A mask without the tokens of the template, in rows that have others.

    Args:
        mask: bool ``[rows, tokens]``, False at padding.
        template: number of tokens before and after the prompt.

    Example:
        >>> own_tokens(torch.tensor([[False, True, True, True]]), (1, 1))
        tensor([[False, False,  True, False]])
    """
    before, after = template
    number, total = mask.cumsum(1), mask.sum(1, keepdim=True)
    own = mask & (number > before) & (number <= total - after)
    return torch.where(own.any(1, keepdim=True), own, mask)


def without_padding(ids: Tensor, pad: int) -> Tensor:
    """The mask of tokens ``[rows, tokens]`` without padding at either end. A row of nothing else counts as a whole.

    Example:
        >>> without_padding(torch.tensor([[7, 0, 8, 0, 0], [0, 0, 0, 0, 9]]), pad=0)
        tensor([[ True,  True,  True, False, False],
                [False, False, False, False,  True]])
    """
    other = ids != pad
    mask = (other.cumsum(1) > 0) & (other.flip(1).cumsum(1).flip(1) > 0)
    return mask | ~other.any(1, keepdim=True)


def _padding(pipeline: Any) -> dict[str, int | None]:
    """Ids of the padding tokens, by the attributes of the text encoders; None if unknown."""
    found: dict[str, int | None] = {}
    for place in text_encoders(pipeline):
        encoder = uncompiled(getattr(pipeline, place))
        if not is_clip(encoder):
            tokenizer = getattr(pipeline, place.replace("text_encoder", "tokenizer"), None)
            # What pads is the tokenizer; some are processors, which do not show the token.
            ids: list[Any] = [
                getattr(part, "pad_token_id", None) for part in (tokenizer, getattr(encoder, "config", None))
            ]
            found[place] = next((number for number in ids if isinstance(number, int)), None)
    return found


def _input_ids(call: Call) -> Tensor | None:
    ids = call.arguments.get("input_ids")
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 else None


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
