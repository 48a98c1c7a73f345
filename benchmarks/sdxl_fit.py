"""How fast the norms of a UNet of SDXL's shape are fitted, against one pass for each site.

Runs in ComfyUI's own environment: ``~/comfy/ComfyUI/.venv/bin/python -m benchmarks.sdxl_fit``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from act_core import fit

from .lib.against_rerunning import measure_against_rerunning
from .lib.in_host import load_pack, version
from .lib.report import Report, parse
from .lib.sdxl_unet import SdxlUNet


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sdxl_fit", description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "comfy" / "ComfyUI", help="(~/comfy/ComfyUI)")
    parser.add_argument("--samples", type=int, default=8, help="samples per side (%(default)s)")
    parser.add_argument("--share", type=float, default=0.25, help="of the channels of SDXL (%(default)s)")
    parser.add_argument("--size", type=int, default=32, help="width and height of the latents (%(default)s)")
    parser.add_argument("--sites", default="norms", help="preset or pattern of the sites (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each side (%(default)s)")
    args = parse(parser, arguments)
    torch.set_num_threads(1)
    host = args.comfyui.expanduser().resolve()
    load_pack(host)
    report = Report("sdxl_fit", "Fit of a UNet of SDXL's shape", args)
    report.text(
        f"A random UNet with all blocks of SDXL and {args.share:g} of its channels, built from the classes of ComfyUI "
        f"{version(host)}; {args.samples} + {args.samples} samples, latents of {args.size} x {args.size}, float32. "
        "Times are processor times of one thread, which other programs hardly change."
    )
    with torch.inference_mode():
        model = SdxlUNet(args.share, args.size)
        source, target = range(1, args.samples + 1), range(-args.samples, 0)
        fit(model, source[:2], target[:2], sites=args.sites)
        measure_against_rerunning(
            report,
            model,
            source,
            target,
            sites=args.sites,
            batch_size=args.samples,
            repeats=args.repeats,
            goal=100,
            clock=time.process_time,
        )
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
