"""Stand-ins for the tokenizers that come with a checkpoint: trained on a few words, with the host's special tokens."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from functools import cache
from typing import Any

import sentencepiece
import torch

WORDS = "a red house an old boat on the sea cat dog tree black ink sign with words and very small hill night green door"


@cache
def sentencepiece_model(pad: int, bos: int, eos: int, unk: int) -> torch.Tensor:
    """A SentencePiece model that knows every character of English prompts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, "abcdefghijklmnopqrstuvwxyz 0123456789 ,.:;!?\"'()<>_-"] * 8),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
        pad_id=pad,
        bos_id=bos,
        eos_id=eos,
        unk_id=unk,
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def gemma() -> torch.Tensor:
    return sentencepiece_model(pad=0, eos=1, bos=2, unk=3)


def umt5() -> torch.Tensor:
    return sentencepiece_model(pad=0, eos=1, bos=-1, unk=2)


def xlm_roberta() -> torch.Tensor:
    return sentencepiece_model(pad=1, bos=0, eos=2, unk=3)


def tekken() -> torch.Tensor:
    """A tokenizer of bytes in Mistral's format."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *["<reserved>"] * 12, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    data = {
        "config": {"default_num_special_tokens": 1000, "default_vocab_size": 1256},
        "vocab": [{"rank": n, "token_bytes": b64encode(bytes([n])).decode()} for n in range(256)],
        "special_tokens": [{"rank": n, "token_str": text} for n, text in enumerate(special) if text != "<reserved>"],
    }
    return _bytes(data)


def tokenizers_json(*special: str) -> torch.Tensor:
    """A tokenizer of bytes in the format of the tokenizers library; its special tokens come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return _bytes(json.loads(tokenizer.to_str()))


_LLAMA_TOKENS = {
    "<|begin_of_text|>": 128000,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
}


class LlamaTokenizer:
    """A tokenizer of bytes with Llama 3's special tokens, whose files some copies of the host lack."""

    @staticmethod
    def from_pretrained(path: str, **_: Any) -> Any:
        from comfy.text_encoders import bpe_tokenizer

        encoder = bpe_tokenizer._bytes_to_unicode()
        decoder = {character: byte for byte, character in encoder.items()}
        vocab = {character: byte for byte, character in encoder.items()} | _LLAMA_TOKENS
        return bpe_tokenizer.BPETokenizer(
            vocab, {}, _LLAMA_TOKENS, bpe_tokenizer._LLAMA_PATTERN, encoder, decoder, bos_id=128000
        )


def _bytes(data: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)
