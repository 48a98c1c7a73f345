"""``act-steering calibrate``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from ..errors import MapError
from ..settings import Branch
from .arguments import (
    Commands,
    add_command,
    add_device,
    add_permission,
    add_seed,
    add_size,
    check_writable,
    number,
    words,
)
from .load import map_of, pipeline, print_remarks


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "calibrate",
        _run,
        "Measure which strengths of a map are of use, and write them into it.",
        "ink.safetensors --model demo_model --out calibrated_ink.safetensors",
    )
    parser.add_argument("map", type=Path, help="the map, a .safetensors file")
    parser.add_argument("--model", required=True, help="pipeline folder of the diffusers library")
    parser.add_argument("--out", "--output", type=Path, help="the map to write, a .safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file; without --out, the map itself")
    parser.add_argument(
        "--prompts", type=Path, help="text file of subjects to draw, one per line (the map's own source prompts)"
    )
    parser.add_argument(
        "--targets", type=Path, help="text file of the same subjects as the map should make them, one per line"
    )
    parser.add_argument("--chart", type=Path, help="also save the curve as a picture, a .png file")
    parser.add_argument(
        "--branch", choices=get_args(Branch), default="positive", help="branch to steer under guidance (%(default)s)"
    )
    parser.add_argument("--negative", type=words, default="", help="the negative prompt")
    parser.add_argument("--steps", type=int, default=20, help="number of denoising steps (%(default)s)")
    parser.add_argument("--guidance", type=number, help="guidance scale (the pipeline's default)")
    add_seed(parser, "seed of the noise")
    add_device(parser)
    add_size(parser)
    add_permission(parser)


def _run(args: argparse.Namespace) -> None:
    out: Path = args.out or args.map
    if out.exists() and not args.overwrite:
        raise MapError(f"{out} already exists; choose another name with --out, or add --overwrite.")
    check_writable(out, "map", ".safetensors")
    if args.chart:
        check_writable(args.chart, "chart", ".png")
    act_map = map_of(args)
    from ..prompts import read_lines

    prompts, targets = (read_lines(path) if path else [] for path in (args.prompts, args.targets))
    model = pipeline(args)
    from ..calibrating import calibrate
    from ..mapfile import save_map
    from ..models.calibration import PipelineCalibration
    from ..plots import calibration_chart, save_chart
    from ..progress import bar
    from ..summary import describe_calibration

    print_remarks(model.steer(act_map))
    settings: dict[str, Any] = {name: getattr(args, name) for name in ("negative", "steps", "guidance", "seed")}
    drawer = PipelineCalibration(model, branch=args.branch, **settings)
    with bar("Calibrating", 1) as drawing:

        def progress(done: int, total: int, _what: str) -> None:
            drawing.total = total
            drawing.update(done - drawing.n)

        calibrated = calibrate(drawer, act_map, prompts, targets, progress=progress)
    save_map(calibrated, out)
    print(f"Saved {out}: {describe_calibration(calibrated.calibrated)}.")
    if args.chart:
        save_chart(calibration_chart(calibrated.calibrated), args.chart)
        print(f"Saved {args.chart}.")
