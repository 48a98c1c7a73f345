"""Tiny random text encoders, tokenizers and autoencoders for pipelines."""

from __future__ import annotations

import importlib
from typing import Any

import transformers
from helpers import randomise
from pipelines import SOURCE, TARGET
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# Their annotations allow only one class where several are valid, and never None.
diffusers: Any = importlib.import_module("diffusers")
hf: Any = transformers

WIDTH = 32
NEGATIVE = "dull grey"
# Words by which a pipeline is examined, and a few more.
_WORDS = ["fox", "many", "red", "houses", "by", "the", "sea", "and", "trees", "user", "system", "assistant", "describe"]
_TEMPLATE = "{% for message in messages %}<s> {{ message.role }} {{ message.content }} </s>{% endfor %} assistant"


def word_tokenizer() -> Any:
    """One token for each word, with a token at the end as T5 has it, and a chat template."""
    words = dict.fromkeys([*_WORDS, *NEGATIVE.split(), *" ".join([*SOURCE, *TARGET]).replace(":", " : ").split()])
    vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", "<s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        chat_template=_TEMPLATE,
        model_max_length=1024,
    )


def random(module: Any) -> Any:
    return randomise(module, scale=0.1).eval()


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def sizes(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 3,
        **changes,
    }


def language_model(family: str, kind: str, **changes: Any) -> Any:
    return random(getattr(hf, kind)(getattr(hf, f"{family}Config")(**sizes(**changes))))


def gemma() -> Any:
    return language_model("Gemma2", "Gemma2Model", query_pre_attn_scalar=8)


def t5() -> Any:
    config = hf.T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return random(hf.T5EncoderModel(config))


def umt5() -> Any:
    config = hf.UMT5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return random(hf.UMT5EncoderModel(config))


def image_vae(latent_channels: int) -> Any:
    return random(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=latent_channels,
            norm_num_groups=4,
            shift_factor=0.0,
            mid_block_add_attention=False,
        )
    )
