"""Run by the host's own Python: our nodes on a tiny random language model as text encoder, as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.sd
import torch
from act_pack import nodes
from act_pack.act_core import ActMap
from act_pack.act_core.settings import FitSettings
from act_pack.nodes.host.fitting import fit_text
from act_pack.nodes.host.progress import FitProgress
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


def as_from_transformers(act_map: ActMap) -> ActMap:
    """The map with the names that a language model without a head has in transformers."""
    sites = {
        replace(site, component="language_model", name=site.name.removeprefix("model.")): transport
        for site, transport in act_map.transports.items()
    }
    base = {"language_model": act_map.record.base["qwen3_4b"]}
    return replace(act_map, transports=sites, record=replace(act_map.record, base=base))


def shift_of_prompts(encoder: Any) -> torch.Tensor:
    """Mean shift of the first attention from source to target, over only the tokens of the prompts."""
    module = encoder.cond_stage_model.qwen3_4b.transformer.model.layers[0].self_attn.o_proj
    tokenizer = encoder.tokenizer.qwen3_4b.tokenizer
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda *given: outputs.append(given[2][0]))
    means: list[list[torch.Tensor]] = []
    for side in (SOURCE, TARGET):
        means.append([])
        for prompt in side:
            encoder.encode_from_tokens(encoder.tokenize(prompt))
            own, whole = (
                tokenizer(text)["input_ids"] for text in (prompt, encoder.tokenizer.llama_template.format(prompt))
            )
            (start,) = (at for at in range(len(whole)) if whole[at : at + len(own)] == own)
            means[-1].append(outputs[-1][start : start + len(own)].mean(0))
    handle.remove()
    return torch.stack(means[1]).mean(0) - torch.stack(means[0]).mean(0)


def main() -> None:
    with torch.inference_mode():
        plain = clip()
        act_map = fit_text(plain, SOURCE, TARGET, FitSettings(), FitProgress())
        shifts = FitSettings(estimator="mean", order="simultaneous")
        alone = fit_text(plain, SOURCE, TARGET, shifts, FitProgress())
        first = alone["qwen3_4b/model.layers.0.self_attn.o_proj"].beta
        before = encoded(plain)
        steered, more, off = (
            nodes.ApplyACTSteeringCLIP.execute(plain, act_map, strength).result[0] for strength in (1.0, 3.0, 0.0)
        )
        moved = encoded(steered)
        alike = nodes.ApplyACTSteeringCLIP.execute(plain, as_from_transformers(act_map), 1.0)
        found = {
            "sites": [site.key for site in act_map.transports],
            "shift": float(first.abs().mean()),
            "off the shift of the prompts": float((first - shift_of_prompts(plain)).abs().max()),
            "moved": float((moved - before).abs().max()),
            "strength 0 is exact": torch.equal(encoded(off), before),
            "after is exact": torch.equal(encoded(plain), before),
            "map from transformers is exact": torch.equal(encoded(alike.result[0]), moved),
            "again is exact": torch.equal(encoded(steered), moved),
            "texts": [written(which) for which in (plain, steered, more, steered, off, plain)] if TextGenerate else [],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
