"""``act-steering sweep``"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import get_args

from ..errors import MapError
from ..files import write_whole
from ..settings import Branch
from .arguments import (
    Commands,
    add_command,
    add_device,
    add_permission,
    add_seed,
    add_size,
    add_strength,
    check_writable,
    number,
    words,
)
from .load import map_of, pipeline, print_remarks

_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_SUFFIXES = (".png", ".jpg", ".webp")
# Pixels; smaller pictures are enlarged to this width.
_MIN_WIDTH = 128


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "sweep",
        _run,
        "Draw the same prompts at increasing strength, as one labelled picture.",
        "--model demo_model --map demo_output/plain_to_ink.safetensors --out sweep.png 'cat, flat sticker'",
    )
    parser.add_argument("prompt", type=words, nargs="+", help="one or several prompts, a row each")
    parser.add_argument("--model", required=True, help="pipeline folder of the diffusers library")
    add_device(parser)
    add_size(parser)
    parser.add_argument("--map", type=Path, required=True, help="the map, a .safetensors file")
    add_permission(parser)
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png, .jpg, or .webp, which is animated")
    add_strength(parser, ", ".join(f"{strength:g}" for strength in _STRENGTHS))
    parser.add_argument(
        "--branch", choices=get_args(Branch), default="positive", help="branch to steer under guidance (%(default)s)"
    )
    parser.add_argument("--negative", type=words, default="", help="the negative prompt")
    parser.add_argument("--steps", type=int, default=20, help="number of denoising steps (%(default)s)")
    parser.add_argument("--guidance", type=number, help="guidance scale (the pipeline's default)")
    add_seed(parser, "seed of the noise")


def _run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix not in _SUFFIXES:
        raise MapError(f"{out} is not a name for a picture; it must end in .png, .jpg or .webp.")
    check_writable(out)
    act_map = map_of(args)
    model = pipeline(args)
    from ..models.sweep import sweep
    from ..plots import grid, save_animation
    from ..progress import bar

    print_remarks(model.steer(act_map))
    strengths = args.strength or _STRENGTHS
    settings = {name: getattr(args, name) for name in ("branch", "negative", "steps", "guidance", "seed")}
    with bar("Drawing", len(strengths)) as drawing:
        images = sweep(model, act_map, args.prompt, strengths, step=drawing.update, **settings)
    titles = [f"{strength:g}" for strength in strengths]
    zoom = max(1, _MIN_WIDTH // images[0][0].width)
    picture = io.BytesIO()
    if out.suffix == ".webp":
        save_animation(images, titles, picture, zoom=zoom)
    else:
        grid(images, args.prompt, titles, zoom=zoom).save(picture, "PNG" if out.suffix == ".png" else "JPEG")
    write_whole(out, picture.getvalue())
    print(f"Saved {out}.")
