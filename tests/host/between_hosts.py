"""Tiny models of diffusers and transformers, and what the host makes of their weights and of maps fitted on them."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from in_host import SCRIPTS, run_inside
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from act_core import ActMap, load_map, save_map, steer

sys.path.append(str(SCRIPTS))

from raw_models import ROWS, Inputs, RawModel, Run, filled

diffusers: Any = importlib.import_module("diffusers")
hf: Any = transformers

TEXT, TOKENS = 32, 7


@dataclass(frozen=True)
class Family:
    """A model as diffusers or transformers builds it.

    Attributes:
        build: makes it.
        run: calls it on rows of the inputs.
        inputs: their shapes without the rows; a name that ends in ``.target`` is that of the target alone.
        component: its name in a pipeline of diffusers.
    """

    build: Callable[[], nn.Module]
    run: Callable[[Any, Inputs], Tensor]
    inputs: dict[str, tuple[int, ...]]
    component: str = "diffusion_model"


def unet(**settings: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        layers_per_block=2,
        **settings,
    )


def sd15() -> nn.Module:
    return unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def sdxl() -> nn.Module:
    return unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )


def run_unet(model: Any, given: Inputs) -> Tensor:
    added = None
    if "pooled" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
    time = given["time"] * 1000
    return model(given["x"], time, given["text"], added_cond_kwargs=added).sample


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=128,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def run_sd3(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["text"], given["pooled"], given["time"] * 1000).sample


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=TEXT,
        pooled_projection_dim=16,
        guidance_embeds=True,
    )


def packed(x: Tensor) -> Tensor:
    """Latents ``[n, channels, height, width]`` as tokens of 2 x 2 positions."""
    rows, channels, height, width = x.shape
    x = x.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(rows, -1, channels * 4)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    rows, channels, height, width = like.shape
    x = x.view(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(like.shape)


def run_flux(model: Any, given: Inputs) -> Tensor:
    x = given["x"]
    ids = torch.zeros(x.shape[2] // 2, x.shape[3] // 2, 3)
    ids[..., 1] += torch.arange(ids.shape[0])[:, None]
    ids[..., 2] += torch.arange(ids.shape[1])
    output = model(
        packed(x),
        given["text"],
        given["pooled"],
        given["time"],
        img_ids=ids.view(-1, 3),
        txt_ids=torch.zeros(given["text"].shape[1], 3),
        guidance=given["guidance"],
    ).sample
    return unpacked(output, x)


def qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=TEXT,
    )


def run_qwen_image(model: Any, given: Inputs) -> Tensor:
    x = given["x"]
    shapes = [[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x)
    output = model(packed(x), given["text"], timestep=given["time"], img_shapes=shapes).sample
    return unpacked(output, x)


def z_image() -> nn.Module:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=384, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=TEXT
    )
    # The host makes this layer no wider than the model.
    model.t_embedder = type(model.t_embedder)(256, mid_size=384)
    return model


def run_z_image(model: Any, given: Inputs) -> Tensor:
    """Time runs backwards there."""
    pictures = [x.unsqueeze(1) for x in given["x"]]
    return torch.stack(model(pictures, 1 - given["time"], list(given["text"])).sample).squeeze(2)


def wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, text_dim=TEXT, ffn_dim=256, num_layers=2
    )


def run_wan(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["time"] * 1000, given["text"]).sample


def clip() -> nn.Module:
    config = hf.CLIPTextConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    return hf.CLIPTextModel(config)


def t5() -> nn.Module:
    sizes = {"vocab_size": 99, "d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 2, "num_heads": 2}
    return hf.T5EncoderModel(hf.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def qwen3(kind: str) -> nn.Module:
    config = hf.Qwen3Config(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    return getattr(hf, kind)(config)


def run_text(model: Any, given: Inputs) -> Tensor:
    """Whole numbers of tokens, made of noise."""
    # The last layer of a language model with a head is not the logits.
    inner = getattr(model, "model", model)
    return inner(tokens_of(given["text"])).last_hidden_state


def tokens_of(noise: Tensor) -> Tensor:
    return (noise.abs() * 1000).long() % 97


_PICTURE = {"x": (16, 8, 8), "time": (), "text": (TOKENS, TEXT)}
_UNET = {**_PICTURE, "x": (4, 8, 8)}
_WORDS: dict[str, tuple[int, ...]] = {"text": (TOKENS,)}

FAMILIES = {
    "SD 1.5": Family(sd15, run_unet, _UNET),
    "SDXL": Family(sdxl, run_unet, {**_UNET, "pooled": (16,), "sizes": (6,)}),
    "SD3": Family(sd3, run_sd3, {**_PICTURE, "pooled": (16,)}),
    "Flux": Family(flux, run_flux, {**_PICTURE, "pooled": (16,), "guidance": ()}),
    "Qwen-Image": Family(qwen_image, run_qwen_image, _PICTURE),
    # Text and picture share a stream there, and the target has longer prompts.
    "Z-Image": Family(z_image, run_z_image, {**_PICTURE, "text.target": (40, TEXT)}),
    "Wan": Family(wan, run_wan, {**_PICTURE, "x": (16, 2, 8, 8)}),
    "CLIP": Family(clip, run_text, {"text": (77,)}, "clip_l"),
    "T5": Family(t5, run_text, _WORDS, "t5xxl"),
    "Qwen3": Family(lambda: qwen3("Qwen3Model"), run_text, _WORDS, "qwen3"),
    "Qwen3 with a head": Family(lambda: qwen3("Qwen3ForCausalLM"), run_text, _WORDS, "language_model"),
}


@cache
def model_of(name: str) -> RawModel:
    """The model of a family in diffusers or transformers."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(1)
    inputs = {key: torch.randn(ROWS, *shape, generator=generator) for key, shape in family.inputs.items()}
    for key, tensor in inputs.items():
        if key in ("time", "guidance"):
            tensor.uniform_(0.2, 0.8, generator=generator)
        elif key.startswith("text"):
            tensor[ROWS // 2 :] += 1
    module = filled(family.build())
    run: Run = lambda given: family.run(module, given)  # noqa: E731
    return RawModel(family.component, module, run, inputs)


@dataclass(frozen=True)
class Exchange:
    """What was exchanged with the host.

    Attributes:
        folder: maps and tensors of each family; those that end in ``.host`` are the host's.
        report: what the host found out, by family.
    """

    folder: Path
    report: dict[str, Any]
    _kept: Any

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.host.safetensors")

    def own_map(self, name: str) -> ActMap:
        """The map that was fitted here."""
        return load_map(self.folder / f"{name}.map.safetensors")

    def host_map(self, name: str) -> ActMap:
        """The map that was fitted in the host."""
        return load_map(self.folder / f"{name}.host.map.safetensors")


@cache
def exchanged(python: Path) -> Exchange:
    """Give the host the weights of every family and a map that is fitted on them, and get its own map."""
    kept = tempfile.TemporaryDirectory()
    folder = Path(kept.name)
    for name in FAMILIES:
        model = model_of(name)
        act_map = model.fitted()
        save_map(act_map, folder / f"{name}.map.safetensors")
        tensors = {f"weights.{key}": tensor for key, tensor in model.part.module.state_dict().items()}
        tensors |= {f"inputs.{key}": tensor for key, tensor in inputs_of(name).items()}
        tensors |= {f"parts.{key}": tensor for key, tensor in model.shared_activations().items()}
        kept_apart = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        save_file(kept_apart, folder / f"{name}.safetensors")
    report = json.loads(run_inside(python, "other_library.py", folder))
    return Exchange(folder, report, kept)


def carried(python: Path) -> dict[str, tuple[str, str, str, str]]:
    """By family: how many sites carry over to the host, which do not, and the same for maps from the host."""
    exchange = exchanged(python)
    found: dict[str, tuple[str, str, str, str]] = {}
    for name, report in exchange.report.items():
        ours, theirs = exchange.own_map(name), exchange.host_map(name)
        model = model_of(name)
        back = steer({model.part.name: model.part.module}, theirs).coverage.missing
        there = report["missing"]
        found[name] = (*_counted(ours, there), *_counted(theirs, back))
    return found


def _counted(act_map: ActMap, missing: Sequence[str]) -> tuple[str, str]:
    kinds = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=[.#]|$)", "*", key.partition("/")[2]) for key in missing)
    return f"{len(act_map) - len(missing)} of {len(act_map)}", ", ".join(f"`{kind}`" for kind in kinds)


def inputs_of(name: str) -> dict[str, Tensor]:
    """The inputs of a family; text encoders get numbers of tokens, and the UNet of SDXL the sizes as an embedding."""
    model = model_of(name)
    halves = [model.rows(list(half)) for half in (range(ROWS // 2), range(ROWS // 2, ROWS))]
    inputs: dict[str, Tensor] = {}
    for key in halves[0]:
        source, target = (half[key] for half in halves)
        if source.shape == target.shape:
            inputs[key] = torch.cat([source, target])
        else:
            # Every half has all rows, of which only its own count.
            inputs[key], inputs[f"{key}.target"] = (torch.cat([half, half]) for half in (source, target))
    if "sizes" in inputs:
        unet: Any = model.part.module
        embedded = unet.add_time_proj(inputs.pop("sizes").flatten()).view(ROWS, -1)
        inputs["pooled"] = torch.cat([inputs["pooled"], embedded], 1)
    if FAMILIES[name].run is run_text:
        inputs["text"] = tokens_of(inputs["text"])
    return inputs
