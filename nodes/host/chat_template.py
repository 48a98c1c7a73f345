"""The tokens that a tokenizer puts before and after every prompt: chat template, start token and end token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Ids = Sequence[int | None]


class ChatTemplate(NamedTuple):
    """The tokens around every prompt, without padding. A language model has a chat template, T5 only an end token.

    Attributes:
        before, after: token ids.
    """

    before: Ids
    after: Ids

    @classmethod
    def of(cls, one: Ids, other: Ids) -> ChatTemplate:
        """Find the template by comparing the tokens of two prompts with different first and different last tokens."""
        before, after = _common_start(one, other), _common_start(one[::-1], other[::-1])
        return cls(one[:before], one[len(one) - after :])

    def prompt(self, ids: Ids) -> slice:
        """Where the prompt stands in its tokens. A prompt that the tokenizer cuts off has no template after it.

        Args:
            ids: token ids without padding; None for what is not a token, such as an embedding.
        """
        begin = _common_start(self.before, ids)
        return slice(begin, len(ids) - _common_start(self.after[::-1], ids[begin:][::-1]))


def _common_start(one: Ids, other: Ids) -> int:
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
