"""UNets: Stable Diffusion 1 and 2, SDXL.

All norms, as in the paper: those of the attention blocks, of the residual blocks, and the last.
"""

from __future__ import annotations

from collections.abc import Collection

from .base import Architecture, numbered
from .shared_names import SharedNames

# ComfyUI's names for the parts of a residual block, by those in diffusers.
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _block(theirs: str, ours: str, number: int) -> dict[str, str]:
    """Names in one block of diffusers, a residual block and perhaps an attention, which is one number in ComfyUI."""
    residual, attention = f"{theirs}.resnets.{number}", f"{theirs}.attentions.{number}"
    parts = {f"{residual}.{part}": f"{ours}.0.{other}" for part, other in _RESIDUAL.items()}
    return {residual: f"{ours}.0", **parts, attention: f"{ours}.1", f"{attention}.*": f"{ours}.1.*"}


def _levels(names: Collection[str]) -> tuple[list[int], list[int]]:
    """The number of residual blocks at each level of the two halves of a UNet, by the names of either library."""
    known = set(names)

    def count(template: str) -> int:
        number = 0
        while template.format(number) in known:
            number += 1
        return number

    if "conv_in" in known:
        down = [count(f"down_blocks.{level}.resnets.{{}}") for level in range(count("down_blocks.{}"))]
        return down, [count(f"up_blocks.{level}.resnets.{{}}") for level in range(count("up_blocks.{}"))]
    down, up = [0], [0]
    for number in range(1, count("input_blocks.{}")):
        if f"input_blocks.{number}.0.op" in known:  # the level ends with a downsampler
            down.append(0)
        else:
            down[-1] += 1
    for number in range(count("output_blocks.{}")):
        up[-1] += 1
        if any(f"output_blocks.{number}.{place}.conv" in known for place in (1, 2)):  # ... and with an upsampler
            up.append(0)
    return down, up


def _blocks(names: Collection[str]) -> dict[str, str]:
    """The names of all blocks: diffusers numbers them at each level, ComfyUI from the first to the last."""
    known = set(names)
    down, up = _levels(known)
    parts = dict(_ENDS)
    number = 1
    for level, count in enumerate(down):
        for block in range(count):
            parts |= _block(f"down_blocks.{level}", f"input_blocks.{number}", block)
            number += 1
        parts[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    for residual, other in ((0, 0), (1, 2)):
        parts[f"mid_block.resnets.{residual}"] = f"middle_block.{other}"
        for part, name in _RESIDUAL.items():
            parts[f"mid_block.resnets.{residual}.{part}"] = f"middle_block.{other}.{name}"
    parts |= {"mid_block.attentions.0": "middle_block.1", "mid_block.attentions.0.*": "middle_block.1.*"}
    number = 0
    for level, count in enumerate(up):
        for block in range(count):
            parts |= _block(f"up_blocks.{level}", f"output_blocks.{number}", block)
            number += 1
        attends = not known.isdisjoint({f"up_blocks.{level}.attentions.0", f"output_blocks.{number - 1}.1.norm"})
        parts[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + attends}.conv"
    return parts


_SHARED = (SharedNames(blocks=_blocks),)

DIFFUSERS_UNET = Architecture(
    "UNet2DConditionModel",
    {
        "norms": ("*.norm", "*.norm[123]", "conv_norm_out"),
        "attention": ("*.attn[12].to_out.0",),
        "mlp": ("*.ff.net.2",),
        "blocks": (*numbered("*.transformer_blocks."), *numbered("*.resnets.")),
    },
    auto=("norms",),
    foldable=("norms", "attention", "mlp"),
    built_by="diffusers",
    shared=_SHARED,
)
COMFYUI_UNET = Architecture(
    "UNetModel",
    {
        "norms": ("*.transformer_blocks.*.norm[123]", "*.norm", "*.in_layers.0", "*.out_layers.0", "out.0"),
        "attention": ("*.attn[12].to_out.0",),
        "mlp": ("*.ff.net.2",),
        "blocks": (*numbered("*.transformer_blocks."), "*.out_layers.3"),
    },
    auto=("norms",),
    foldable=("norms", "attention", "mlp"),
    built_by="ComfyUI",
    shared=_SHARED,
)
