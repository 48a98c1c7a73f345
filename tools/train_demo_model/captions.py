"""What the model is told about a picture: captions, and the tokenizer that reads them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .emoji import STYLES, Emoji

VOCABULARY = 3200
# Tokens of a prompt, with <s> and </s>; shorter ones are padded always.
LENGTH = 16
# CLIPTextModel pools at the end token, and takes the number 2 for a sign of an old checkpoint: </s> must have another.
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>")
NO_CAPTION = 0.10
NO_PHRASE = 0.5


def caption(name: str, keywords: Sequence[str] = (), style: int | None = None) -> str:
    """``name[, keyword ...][, style phrase]``."""
    return ", ".join((name, *keywords, *(() if style is None else (STYLES[style].phrase,))))


class Captions:
    """Captions to train on, as token ids."""

    def __init__(self, emoji: Emoji, tokenizer: PreTrainedTokenizerFast) -> None:
        self._emoji = emoji
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def draw(self, style: int, concept: int, chance: random.Random) -> list[int]:
        """One caption of a picture: at times empty, and for the base style at times without its phrase.

        Keywords are given only where there is room: what is cut off is the end, and there stands the style.
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
    """A byte-pair tokenizer of its own, trained on all names, keywords and style phrases."""
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
