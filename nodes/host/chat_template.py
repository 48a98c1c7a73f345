"""The chat template of a language model that is used as a text encoder: the tokens before and after every prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

Tokens = dict[str, Any]  # sections by text encoder; each a list of (token, weight, ...)

# Two prompts that share neither their first nor their last token, of different length.
_PROBES = "tree", "9 red, old and very small houses on a hill beside the sea at night, with a green door"


class ChatTemplate(NamedTuple):
    """How many tokens precede and follow every prompt, and what the tokenizer pads with.

    Attributes:
        before, after: number of tokens of the template.
        pad: the padding token; None if prompts are not padded.
    """

    before: int
    after: int
    pad: object

    @classmethod
    def of(cls, tokenize: Callable[[str], Tokens]) -> ChatTemplate | None:
        """Find the template by comparing the tokens of two prompts; None if a prompt gives several lists of tokens."""
        short, long = (_ids(tokenize(text)) for text in _PROBES)
        if len(short) != 1 or len(long) != 1:
            return None
        template = cls(0, 0, short[0][-1] if len(short[0]) == len(long[0]) else None)
        one, other = template._unpadded(short[0]), template._unpadded(long[0])
        return template._replace(before=_common_start(one, other), after=_common_start(one[::-1], other[::-1]))

    def prompt(self, tokens: Tokens) -> tuple[int, int, int]:
        """The span of a prompt in its tokens: begin, end, and the total number of tokens."""
        ids = _ids(tokens)[0]
        return self.before, len(self._unpadded(ids)) - self.after, len(ids)

    def _unpadded(self, ids: Sequence[object]) -> Sequence[object]:
        end = len(ids)
        while end and self.pad is not None and ids[end - 1] == self.pad:
            end -= 1
        return ids[:end]


def are_sections(tokens: object) -> TypeGuard[list[list[Any]]]:
    """Whether an entry of what the host's tokenizers return holds tokens, and not an option."""
    return isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], list)


def _ids(tokens: Tokens) -> list[list[object]]:
    """The first section of each list of tokens, without the weights."""
    return [[token[0] for token in own[0]] for own in tokens.values() if are_sections(own)]


def _common_start(one: Sequence[object], other: Sequence[object]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
