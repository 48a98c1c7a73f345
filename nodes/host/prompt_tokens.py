"""Which tokens of a text encoder belong to the prompt: those that a fit pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ...act_core.architectures import architecture_of
from ...act_core.architectures.text_encoders import CLIP
from .chat_template import ChatTemplate, Ids

# What the host's tokenizers return. By key, sections of (token, weight, ...), or an option.
Tokens = dict[str, Any]

# Two prompts that share neither their first nor their last token, of different length.
_PROBES = "tree", "9 red, old and very small houses on a hill beside the sea at night, with a green door"
# Some encoders read only what a prompt quotes.
_FORMS = "{}", '"{}"'


class PromptTokens:
    """Finds the tokens of the prompt itself, without padding, start and end tokens, and chat template.

    The encoder's own attention mask decides what is padding, even if its attention does not use the mask.

    Args:
        part: one of the host's text encoders.
        key: of its tokens.
        tokenize: returns the tokens of a prompt.
    """

    def __init__(self, part: Any, key: str, tokenize: Callable[[str], Tokens]) -> None:
        self._part = part
        self._key = key
        self._template = ChatTemplate((), ())
        for form in _FORMS:
            probes = [tokenize(form.format(probe)) for probe in _PROBES]
            if all(key in tokens for tokens in probes):
                one, other = (self._without_padding(self._rows([tokens]))[0][1] for tokens in probes)
                self._template = ChatTemplate.of(one, other)
                return

    def mask(self, group: Sequence[Tokens]) -> Tensor:
        """The mask of prompts with the same number of tokens: bool ``[prompts, tokens]``, True at those of the prompt.

        A prompt without tokens of its own counts as a whole.
        """
        rows = self._rows(group)
        mask = torch.zeros(len(rows), len(rows[0]), dtype=torch.bool)
        for row, (positions, ids) in zip(mask, self._without_padding(rows), strict=True):
            row[positions[self._template.prompt(ids)] or positions or slice(None)] = True
        return mask

    def _rows(self, group: Sequence[Tokens]) -> list[list[Any]]:
        """The first section of each prompt, without weights."""
        return [[token[0] for token in tokens[self._key][0]] for tokens in group]

    def _without_padding(self, rows: Sequence[Sequence[Any]]) -> list[tuple[list[int], Ids]]:
        """The positions of the tokens that the encoder attends to, and their ids, for each row."""
        attended = [row.nonzero().flatten().tolist() for row in _attention_mask(self._part, rows)]
        return [(at, [_id(row[position]) for position in at]) for at, row in zip(attended, rows, strict=True)]


def is_read_with_padding(part: Any) -> bool:
    """Whether all tokens of an encoder count: it is a CLIP model that the host runs and returns without any mask.

    The diffusion model reads the padding of such an encoder, too.
    """
    flags = ("enable_attention_masks", "zero_out_masked", "return_attention_masks")
    return architecture_of(part.transformer) is CLIP and not any(getattr(part, flag, False) for flag in flags)


def are_sections(tokens: object) -> TypeGuard[list[list[Any]]]:
    """Whether an entry of what the host's tokenizers return holds tokens, and not an option."""
    return isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], list)


def _attention_mask(part: Any, rows: Sequence[Sequence[Any]]) -> Tensor:
    """The attention mask that an encoder computes for its tokens: ``[rows, tokens]``."""
    if not hasattr(part, "process_tokens"):  # it pads rows only to the longest; here, all are of one length
        return torch.ones(len(rows), len(rows[0]))
    device = getattr(part, "execution_device", None) or part.transformer.get_input_embeddings().weight.device
    return part.process_tokens(rows, device)[1].cpu()


def _id(token: object) -> int | None:
    return int(token) if isinstance(token, Integral) else None
