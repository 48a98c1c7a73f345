"""Run by the host's own Python: our nodes on a tiny random language model as text encoder, as JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.sd
import torch
from act_pack import nodes
from act_pack.nodes.host import fitting
from comfy.text_encoders import z_image

try:
    from comfy_extras.nodes_textgen import TextGenerate
except ImportError:  # an older host
    TextGenerate = None

SOURCE = ["a cat on a mat", "a red house", "an old boat", "a tall tree", "a small dog"]
TARGET = [f"ink, {prompt}" for prompt in SOURCE]
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
PROMPT = "a cat on a mat"


def clip() -> Any:
    target = SimpleNamespace(clip=z_image.te(), tokenizer=z_image.ZImageTokenizer, params={})
    encoder = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, "qwen3_4b_model_config": TINY})
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.cond_stage_model.parameters():
        width = parameter[0].numel() if parameter.ndim > 1 else 0
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / width**0.5 if width else 1 + 0.1 * noise
    return encoder


def written(encoder: Any) -> str:
    assert TextGenerate is not None
    sampling = {"sampling_mode": "on", "temperature": 1.0, "top_k": 50, "seed": 1}
    return TextGenerate.execute(encoder, PROMPT, 12, sampling).result[0]


def encoded(encoder: Any) -> torch.Tensor:
    return encoder.encode_from_tokens(encoder.tokenize(PROMPT))


def main() -> None:
    with torch.inference_mode():
        plain = clip()
        act_map = fitting.fit_text(plain, SOURCE, TARGET)
        before = encoded(plain)
        steered, more, off = (
            nodes.ApplyACTSteeringCLIP.execute(plain, act_map, strength).result[0] for strength in (1.0, 3.0, 0.0)
        )
        moved = encoded(steered)
        told = {
            "sites": [site.key for site in act_map.transports],
            "moved": float((moved - before).abs().max()),
            "strength 0 is exact": torch.equal(encoded(off), before),
            "after is exact": torch.equal(encoded(plain), before),
            "again is exact": torch.equal(encoded(steered), moved),
            "texts": [written(which) for which in (plain, steered, more, steered, off, plain)] if TextGenerate else [],
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
