"""Turns prompts into token ids, bare or inside the chat template of a model."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import TemplateError

from ..errors import MapError, first_line

# Placeholder for a prompt, to find the text that a template puts around it; no template contains this character.
_MARK = "\ue000"


@dataclass(frozen=True)
class Chat:
    """How a prompt is placed into the chat template of a model.

    Attributes:
        system: the system prompt; the template's own if empty.
        user: text of the user. The prompt follows it, in a separate paragraph.
        answer: whether the prompt is the model's answer rather than a part of what the user says.

    Example:
        >>> Chat(user="Describe:").messages("a boat")
        [{'role': 'user', 'content': 'Describe:\\n\\na boat'}]
        >>> Chat(user="Describe a boat.", answer=True).messages("It floats.")[1]
        {'role': 'assistant', 'content': 'It floats.'}
    """

    system: str = ""
    user: str = ""
    answer: bool = False

    def messages(self, prompt: str, *, system_role: bool = True) -> list[dict[str, str]]:
        """The messages for a chat template.

        Args:
            prompt: the prompt.
            system_role: whether the template has a system role; without one the system prompt begins the user's text.
        """
        system, user = self.system.strip(), self.user.strip()
        messages = [{"role": "system", "content": system}] if system and system_role else []
        parts = ["" if system_role else system, user, "" if self.answer else prompt]
        messages.append({"role": "user", "content": "\n\n".join(part for part in parts if part)})
        return [*messages, {"role": "assistant", "content": prompt}] if self.answer else messages


@dataclass(frozen=True)
class PromptTokens:
    """Token ids, and the span of the prompt itself in them.

    Attributes:
        ids: all token ids, those of a chat template included.
        begin, end: the span of the prompt, `end` excluded.
    """

    ids: list[int]
    begin: int
    end: int


def prompt_tokens(tokenizer: Any, prompt: str, chat: Chat | None = None) -> PromptTokens:
    """Token ids of a prompt.

    Args:
        tokenizer: a tokenizer of transformers.
        prompt: the text.
        chat: how it is placed into the chat template; None for the bare prompt.

    Raises:
        MapError: the chat template cannot be rendered, or leaves the prompt out.
    """
    if chat is None:
        ids = token_ids(tokenizer, prompt)
        return PromptTokens(ids, 0, len(ids))
    prompt = prompt.strip()
    text = _rendered(tokenizer, prompt, chat)
    ids = token_ids(tokenizer, text, special=False)  # the template brings its own special tokens
    around = _rendered(tokenizer, _MARK, chat)
    head, tail = around.partition(_MARK)[0], around.rpartition(_MARK)[2]
    if tokenizer.is_fast:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        own = [at for at, (begin, end) in enumerate(spans) if begin < len(text) - len(tail) and end > len(head)]
    else:
        before, after = (len(token_ids(tokenizer, part, special=False)) if part else 0 for part in (head, tail))
        own = range(before, len(ids) - after)
    if not own:
        raise MapError(
            f"The chat template drops the prompt {reprlib.repr(prompt)}; write another prompt, or use it "
            "without the template."
        )
    return PromptTokens(ids, own[0], own[-1] + 1)


def token_ids(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text, with the special tokens that the tokenizer adds unless `special` is False."""
    return cast("list[int]", tokenizer(text, add_special_tokens=special)["input_ids"])


def _rendered(tokenizer: Any, prompt: str, chat: Chat) -> str:
    """A prompt in the chat template, ready to be answered."""
    failure = ""
    for system_role in (True, False) if chat.system.strip() else (True,):  # some templates have no system role
        try:
            return tokenizer.apply_chat_template(
                chat.messages(prompt, system_role=system_role),
                tokenize=False,
                add_generation_prompt=not chat.answer,
                enable_thinking=False,  # for reasoning models
            )
        except TemplateError as error:
            failure = first_line(error)
    raise MapError(f"The chat template cannot be used; use the bare text instead: {failure}")
