"""``act-steering export-lora``"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import MapError
from .arguments import Commands, add_command, add_device, add_new_file, add_permission, new_file, number
from .load import is_pipeline, map_of, pipeline


def add(commands: Commands) -> None:
    """Add the command."""
    purpose = "Export a map as a small LoRA, for those who do not have this library."
    example = "ink.safetensors --model my_pipeline --out ink_lora.safetensors"
    parser = add_command(commands, "export-lora", _run, purpose, example)
    parser.add_argument("map", type=Path, help="the map, a .safetensors file")
    parser.add_argument("--model", required=True, help="the pipeline folder that the map was fitted on")
    add_new_file(parser, "LoRA")
    parser.add_argument(
        "--format",
        choices=("comfyui", "diffusers"),
        default="comfyui",
        help="who reads it; diffusers can read only shifts of linear layers, as of --estimator mean (%(default)s)",
    )
    parser.add_argument(
        "--linear-layers",
        choices=("compact", "whole"),
        default="compact",
        help="whole stores the whole change of each weight, which only bypass loaders of ComfyUI need (%(default)s)",
    )
    parser.add_argument(
        "--level", type=number, help="for a map with several noise levels: the one, from 0 to 1, that acts at all steps"
    )
    add_permission(parser)
    add_device(parser)
    parser.set_defaults(size=None)


def _run(args: argparse.Namespace) -> None:
    from ..interop.lora import diffusers_lora_tensors, for_comfyui, for_diffusers, lora_tensors, save_lora, storable
    from ..steering.weights import fold_map

    out = new_file(args)
    act_map = map_of(args)
    if not is_pipeline(args.model):
        raise MapError(f"{args.model} is not the folder of a pipeline; LoRAs are exported for models of pictures only.")
    model = pipeline(args)
    from ..models.pipelines import places_of

    folded = fold_map(act_map, model.modules, level=args.level)
    if args.format == "diffusers":
        folded = for_diffusers(folded)
        tensors = diffusers_lora_tensors(folded, places_of(model.pipeline))
    else:
        folded = storable(for_comfyui(folded, model.modules), args.linear_layers)
        tensors = lora_tensors(folded, linear_layers=args.linear_layers)
    save_lora(folded, tensors, out)
    print(folded.report)
    print(f"Saved {out} ({out.stat().st_size / 1e6:.2f} MB).")
