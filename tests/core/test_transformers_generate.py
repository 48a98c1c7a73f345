"""Text generation with language models."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from act_core import MapError
from act_core.models.generation import RepetitionPenalty
from act_core.models.transformers import TransformersModel

PROMPT = "When I woke up this morning, I"


def continued(model: TransformersModel, seed: int = 0, temperature: float = 0.8) -> str:
    return model.generate([PROMPT], max_new_tokens=12, seed=seed, temperature=temperature)[0]


def test_generate_depends_on_seed(smollm2: TransformersModel) -> None:
    first, again, other = (continued(smollm2, seed=seed, temperature=1.5) for seed in (3, 3, 4))
    assert first == again != other


def test_generate_at_temperature_zero_ignores_seed(llama: TransformersModel) -> None:
    assert continued(llama, 1, temperature=0) == continued(llama, 2, temperature=0)


def test_generate_keeps_global_random_state(smollm2: TransformersModel) -> None:
    before, other = torch.get_rng_state(), random.getstate()
    continued(smollm2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == other


def test_generate_returns_same_text_alone_and_in_batch(smollm2: TransformersModel) -> None:
    others = [PROMPT, "No", "In the middle of the old town, behind the church, there is"]
    together = smollm2.generate(others, max_new_tokens=8, temperature=0)
    assert together == [smollm2.generate([prompt], max_new_tokens=8, temperature=0)[0] for prompt in others]


def test_generate_leaves_prompt_out(smollm2: TransformersModel) -> None:
    (text,) = smollm2.generate([PROMPT], max_new_tokens=3, temperature=0)
    assert PROMPT not in text
    assert 1 <= len(smollm2.tokenizer(text)["input_ids"]) <= 3


@pytest.mark.parametrize("texts", [[""], ["a", " \n"]])
def test_generate_refuses_empty_prompts(llama: TransformersModel, texts: list[str]) -> None:
    with pytest.raises(MapError, match="prompt is empty"):
        llama.generate(texts)


def test_generate_keeps_leading_space(llama: TransformersModel) -> None:
    """Tokenizers like SentencePiece drop the space before the first token that they decode."""
    pieces = {"<end>": 0, "▁rain": 1, "▁falls": 2, "▁down": 3, "<unk>": 4}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    model = TransformersModel(llama.module, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))
    with favoured(model, 2):
        assert model.generate(["rain"], max_new_tokens=2, temperature=0) == [" falls falls"]


@contextmanager
def favoured(model: TransformersModel, token: int) -> Generator[None, None, None]:
    """Makes one token always the most likely."""
    hook = model.module.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: (
            torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1]).float().expand_as(logits)
        )
    )
    try:
        yield
    finally:
        hook.remove()


def test_generate_calls_step_after_each_token(llama: TransformersModel) -> None:
    steps: list[int] = []
    llama.generate(["a"], max_new_tokens=5, step=lambda: steps.append(1))
    assert 1 <= len(steps) <= 5

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama.generate(["a"], max_new_tokens=5, step=stop)


def test_repetition_penalty_spares_prompt() -> None:
    ids = torch.tensor([[5, 6, 7, 1, 2]])  # three prompt tokens, and two generated ones
    scores = torch.tensor([[0.0, 4.0, -4.0, 1.0, 1.0, 3.0, -3.0, 3.0]])
    penalised = RepetitionPenalty(2.0, 3)(ids, scores)  # pyright: ignore[reportArgumentType]
    assert penalised.tolist() == [[0.0, 2.0, -8.0, 1.0, 1.0, 3.0, -3.0, 3.0]]


def test_generate_repeats_less_with_penalty(smollm2: TransformersModel) -> None:
    def different(penalty: float) -> int:
        (text,) = smollm2.generate([PROMPT], max_new_tokens=60, temperature=0, repetition_penalty=penalty)
        return len(set(text.split()))

    assert different(1.3) > different(1.0)


def test_generate_overrides_generation_config_of_model(llama: TransformersModel) -> None:
    plain = llama.generate(["one", "two"], max_new_tokens=8)
    preferred = copy.deepcopy(llama.module.generation_config)
    try:
        llama.module.generation_config.update(
            return_dict_in_generate=True, num_beams=3, num_return_sequences=2, stop_strings=["\0\0\0"]
        )
        assert llama.generate(["one", "two"], max_new_tokens=8) == plain
    finally:
        llama.module.generation_config = preferred


def test_generate_refuses_single_text(llama: TransformersModel) -> None:
    with pytest.raises(MapError, match=r"generate takes a list of prompts; write \['rain'\]"):
        llama.generate("rain")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, "The list of prompts is empty"),
    ({"prompts": None}, "The prompts are None"),
    ({"prompts": ["rain", None]}, "Prompt 2 is None, not a text"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number, at least 1"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be a whole number, at least 1"),
    ({"max_new_tokens": 1.5}, r"max_new_tokens is 1\.5"),
    ({"temperature": 0.001}, r"temperature is 0\.001; it must be 0, or at least 0\.01"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": "warm"}, "temperature is 'warm'"),
    ({"top_p": 1.1}, r"top_p is 1\.1; it must be a finite number from 0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**63}, f"seed is {2**63}"),
]


@pytest.mark.parametrize(("settings", "match"), REFUSED)
def test_generate_refuses_settings_in_one_sentence(
    llama: TransformersModel, settings: dict[str, Any], match: str
) -> None:
    values: dict[str, Any] = {"prompts": ["rain"], **settings}
    with pytest.raises(MapError, match=match) as caught:
        llama.generate(**values)
    assert "\n" not in str(caught.value)


def test_generate_accepts_numbers_of_numpy_and_torch(llama: TransformersModel) -> None:
    plain = llama.generate(["rain"], max_new_tokens=5, temperature=0.5, top_p=0.75, seed=3)
    numbers: dict[str, Any] = {
        "max_new_tokens": np.int64(5),
        "temperature": np.float32(0.5),
        "top_p": torch.tensor(0.75),
        "seed": np.uint64(3),
    }
    assert llama.generate(["rain"], **numbers) == plain
