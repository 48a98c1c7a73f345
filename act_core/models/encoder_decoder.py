"""Encoder-decoder language models of the transformers library, such as T5 and BART."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..architectures import architecture_of
from ..components import DECODER, ENCODER, Component
from ..errors import MapError
from ..fitting import MicroBatch
from .chat import Chat, PromptTokens
from .generation import Sampling
from .kinds import check_loadable_pair, check_translates
from .pretrained import load_pretrained
from .transformers import TransformersModel


class EncoderDecoderModel(TransformersModel):
    """An encoder-decoder language model with its tokenizer.

    Its halves are two components, ``encoder`` and ``decoder``, and a map may hold sites of both. In a fit the encoder
    reads a prompt, and its tokens are pooled without padding. The decoder runs on its start token alone: there it has
    read the whole prompt and is about to write, while any further token would be a guess of the untouched model, which
    the map is to change.

    Attributes:
        module: the model; sites are named from its encoder and its decoder.
        tokenizer: its tokenizer.
        name: display name.

    Raises:
        MapError: a model without an encoder and a decoder.

    Example::

        model = EncoderDecoderModel.from_pretrained("flan-t5-small")
        act_map = fit(model, ["Write about rain.", ...], ["Write about sunshine.", ...])
        with model.steer(act_map, 0.7):
            model.generate(["Write about a day."], max_new_tokens=40)
    """

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> EncoderDecoderModel:
        """Load a model folder. Nothing is ever downloaded.

        Raises:
            MapError: the path does not exist, or is not an encoder-decoder language model that can be loaded.
        """
        advice = "Give the folder of an encoder-decoder language model."
        return cls(
            *load_pretrained(path, transformers.AutoModelForSeq2SeqLM, check_loadable_pair, advice, dtype, device)
        )

    def in_chat(self, chat: Chat) -> TransformersModel:
        """Refused: these models have no chat template.

        Raises:
            MapError: always.
        """
        raise MapError(f"The model {self.name} is an encoder-decoder model, without a chat template; use bare prompts.")

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {ENCODER: self.module.get_encoder(), DECODER: self.module.get_decoder()}

    @property
    def components(self) -> list[Component]:
        # The records of text encoders select more sites for pictures than keep a text fluent.
        records = {name: architecture_of(module) for name, module in self.modules.items()}
        return [
            Component(name, module, replace(records[name], auto=("attention",)))
            for name, module in self.modules.items()
        ]

    def perplexity(self, texts: Sequence[str], after: Sequence[str] | None = None, *, batch_size: int = 16) -> float:
        """``exp`` of the mean negative log-likelihood of a token that the decoder writes.

        Args:
            texts: the texts to measure.
            after: the prompts that the encoder reads.
            batch_size: texts that run together.

        Raises:
            MapError: there is nothing to measure, no prompts, or a text is too long.
        """
        if after is None:
            raise MapError("An encoder-decoder model answers prompts; give the prompts of the texts as `after`.")
        pairs = [(self._prompt_tokens(p).ids, self._tokens(t)) for t, p in zip(texts, after, strict=True) if t]
        total, count = 0.0, 0
        with torch.inference_mode():
            for at in range(0, len(pairs), batch_size):
                prompts, answers = zip(*pairs[at : at + batch_size], strict=True)
                ids, mask = self._padded(answers)
                start = self._start_tokens(len(ids))
                shifted = torch.cat([start, ids[:, :-1]], 1)
                # Gates read this mask, too.
                present = torch.cat([torch.ones_like(start), mask[:, :-1].long()], 1)
                logits = self._run(prompts, shifted, decoder_attention_mask=present).logits
                losses = nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none")
                total += float(losses[mask].sum())
                count += int(mask.sum())
        if not count:
            raise MapError("The texts are too short to measure their perplexity; give longer ones.")
        return math.exp(total / count)

    def _check_module(self, name: str, module: Any) -> None:
        check_translates(name, module)

    def _written(self, texts: Sequence[str], sampling: Sampling, step: Callable[[], object] | None) -> list[str]:
        tokens = [self._prompt_tokens(text).ids for text in texts]
        # The answer has a context of its own.
        self._check_length(1, sampling.max_new_tokens, texts[0])
        # Padded on the right: some encoders count positions from the left.
        ids, mask = self._padded(tokens)
        start = self._start_tokens(len(ids))
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": start}
        output = self._sampled(inputs, start.shape[1], sampling, step)
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return [text.rstrip("\ufffd") for text in texts]

    def _batch(self, tokens: Sequence[PromptTokens]) -> MicroBatch:
        prompts = [prompt.ids for prompt in tokens]
        start = self._start_tokens(len(prompts))
        masks = {ENCODER: self._padded(prompts)[1], DECODER: torch.ones_like(start, dtype=torch.bool)}
        return MicroBatch(len(prompts), partial(self._run, prompts, start), masks, masks)

    def _run(self, prompts: Sequence[list[int]], decoder_ids: Tensor, **masks: Tensor) -> Any:
        ids, mask = self._padded(prompts)
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": decoder_ids, **masks}
        return self.module(**inputs, use_cache=False)

    def _start_tokens(self, rows: int) -> Tensor:
        """Ids of the token that a decoder begins with, ``[rows, 1]``."""
        settings = (self.module.generation_config, self.module.config)
        names = ("decoder_start_token_id", "bos_token_id")
        found = (getattr(part, name, None) for name in names for part in settings)
        token = next((value for value in found if value is not None), self._pad)
        return torch.full((rows, 1), token, device=self.device)
