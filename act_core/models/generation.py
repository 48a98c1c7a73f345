"""The settings of text generation, and the callbacks that transformers runs after each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from ..errors import MapError
from ..settings import as_integer
from .base import as_real, checked_seed

# Lower temperatures let logits overflow; 0 always picks the most likely token.
MIN_TEMPERATURE = 0.01


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; checked when an instance is made.

    Attributes:
        max_new_tokens: maximum number of tokens to add.
        temperature: 0 always picks the most likely token.
        top_p: sample only from the most likely tokens whose probabilities add up to this share.
        repetition_penalty: above 1, tokens that were already generated become less likely.
        seed: the same seed gives the same text.

    Raises:
        MapError: a setting that is out of range.

    Example:
        >>> Sampling(temperature=0).arguments(prompt_length=3)["do_sample"]
        False
        >>> Sampling(temperature=-1)
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: temperature is -1; it must be a finite number, at least 0.
    """

    max_new_tokens: int = 40
    temperature: float = 0.8
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        def set_checked(name: str, value: float) -> None:
            object.__setattr__(self, name, value)

        set_checked("max_new_tokens", as_integer("max_new_tokens", self.max_new_tokens, 1, error=MapError))
        set_checked("temperature", _temperature(self.temperature))
        set_checked("top_p", as_real("top_p", self.top_p, 0, 1))
        set_checked("repetition_penalty", as_real("repetition_penalty", self.repetition_penalty, 0.01))
        set_checked("seed", checked_seed(self.seed))

    def arguments(self, prompt_length: int) -> dict[str, Any]:
        """The settings as keyword arguments of ``module.generate``.

        Args:
            prompt_length: tokens of the padded prompts, which the repetition penalty leaves out.
        """
        penalty = [RepetitionPenalty(self.repetition_penalty, prompt_length)] if self.repetition_penalty != 1 else []
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": 1.0,
            "logits_processor": transformers.LogitsProcessorList(penalty),
            "do_sample": self.temperature != 0,
        }
        if self.temperature:
            arguments |= {"temperature": self.temperature, "top_p": self.top_p}
        return arguments


def _temperature(value: object) -> float:
    number = as_real("temperature", value, 0)
    if 0 < number < MIN_TEMPERATURE:
        raise MapError(f"temperature is {value!r}; it must be 0, or at least {MIN_TEMPERATURE}.")
    return number


class AfterToken(transformers.StoppingCriteria):
    """Calls a function after each token, and never stops generation."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._step()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class RepetitionPenalty(transformers.LogitsProcessor):
    """Penalty of Keskar et al. (arXiv 1909.05858, section 4.1) on the tokens after the prompt.

    The prompt, and with it the end mark of a chat template, does not count.

    Args:
        penalty: by which the logit of a repeated token is divided if positive, else multiplied.
        prompt_length: how many tokens come before those that count.
    """

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self._penalty = penalty
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids[:, self._prompt_length :]
        score = scores.gather(1, written)
        return scores.scatter(1, written, torch.where(score < 0, score * self._penalty, score / self._penalty))
