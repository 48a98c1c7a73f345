"""Captions of the pictures, and the tokenizer that reads them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .emoji import STYLES, Emoji

VOCABULARY = 3200
# Tokens per prompt, including <s> and </s>; shorter prompts are padded.
LENGTH = 16
# CLIPTextModel pools at the end token. It treats an end token of 2 as the mark of an old checkpoint, so </s> is 3.
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>")
# Share of empty captions, and of captions of the default style without its phrase.
NO_CAPTION = 0.10
NO_PHRASE = 0.5


def caption(name: str, keywords: Sequence[str] = (), style: int | None = None) -> str:
    """Write ``name[, keyword ...][, style phrase]``.

    Example:
        >>> caption("snail", ["slow"], 1)
        'snail, slow, glossy cartoon'
    """
    return ", ".join((name, *keywords, *(() if style is None else (STYLES[style].phrase,))))


class Captions:
    """Draws captions to train on, as token ids."""

    def __init__(self, emoji: Emoji, tokenizer: PreTrainedTokenizerFast) -> None:
        self._emoji = emoji
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def draw(self, style: int, concept: int, chance: random.Random) -> list[int]:
        """Draw one caption of a picture: sometimes empty, and in the default style sometimes without its phrase.

        Keywords are added only if they fit, since truncation would cut off the style at the end.
        """
        if chance.random() < NO_CAPTION:
            return self._padded("")
        named = style if style != 0 or chance.random() >= NO_PHRASE else None
        name, words = self._emoji.names[concept], self._emoji.keywords[concept]
        for count in range(min(len(words), chance.randint(0, 2)), 0, -1):
            ids = self._padded(caption(name, chance.sample(words, count), named))
            if ids[-1] == self._tokenizer.pad_token_id:
                return ids
        return self._padded(caption(name, (), named))

    def _padded(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        return self._ids[text]


def train_tokenizer(emoji: Emoji) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on all names, keywords and style phrases."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    names = [f"{name}, {', '.join(words)}" for name, words in zip(emoji.names, emoji.keywords, strict=True)]
    phrases = [style.phrase for style in STYLES] * len(names)
    tokenizer.train_from_iterator([*names, *emoji.names, *phrases], trainer)
    ends = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LENGTH,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
