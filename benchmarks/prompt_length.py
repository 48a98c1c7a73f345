"""How far a target prompt that is only longer moves a map, with text and picture tokens pooled together and apart.

Runs in ComfyUI's own environment, on tiny random models of its classes:
``~/comfy/ComfyUI/.venv/bin/python -m benchmarks.prompt_length``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from act_core import ActMap
from tools.results import Cell, Column
from tools.tiny_models import MODELS, Tiny, built, conditioning

from .lib.in_host import load_pack, pack_module, version
from .lib.report import Report, parse

NAMES = ("Chroma", "Z-Image", "Krea 2", "Qwen-Image")
SIDE = 32  # latents; 256 picture tokens
LENGTHS = 30, 40  # tokens
# Where the names of blocks begin in which text and picture share a stream.
_JOINED = {"Chroma": "single_blocks.", "ZImage": "layers.", "Krea2": "blocks."}
COLUMNS = (
    Column("model"),
    Column("tokens"),
    Column("sites", format="d"),
    Column("equal lengths", format=".2f"),
    Column("longer target", format=".2f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt_length", description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "comfy" / "ComfyUI", help="(~/comfy/ComfyUI)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per side (%(default)s)")
    args = parse(parser, arguments)
    host = args.comfyui.expanduser().resolve()
    load_pack(host)
    report = Report("prompt_length", "Longer target prompts", args)
    report.text(
        f"ComfyUI {version(host)}; tiny random models, {args.prompts} + {args.prompts} random prompts of {LENGTHS[0]} "
        f"tokens, targets of {LENGTHS[0]} or {LENGTHS[1]}. Both sides come from one distribution."
    )
    with torch.inference_mode():
        title = "Shift of the mean, in standard deviations of the source; root mean square over channels"
        report.table("shift", title, COLUMNS, shifts(args.prompts))
    return report.finish()


def shifts(prompts: int) -> Generator[list[Cell], None, None]:
    """For each model and part of its streams, the shift with targets of equal length, and of greater length."""
    for name in NAMES:
        tiny = MODELS[name]
        model = built(tiny)
        for apart in (False, True):
            equal = _by_part(_fitted(tiny, model, prompts, LENGTHS[0], apart=apart), tiny)
            longer = _by_part(_fitted(tiny, model, prompts, LENGTHS[1], apart=apart), tiny)
            for part, shift in longer.items():
                if apart and part == "separate streams":
                    continue  # the same as before
                yield [name, part, len(shift), mean(equal.get(part, equal["joined"])), mean(shift)]


def _fitted(tiny: Tiny, model: Any, prompts: int, length: int, *, apart: bool) -> ActMap:
    denoisers = pack_module("nodes.host.denoiser")
    fit = pack_module("act_core").fit
    conds = [conditioning(tiny, seed, LENGTHS[0]) for seed in range(prompts)]
    conds += [conditioning(tiny, seed, length) for seed in range(prompts, 2 * prompts)]
    sides = denoisers.encoded_sides([f"source {n}" for n in range(prompts)], [f"target {n}" for n in range(prompts)])
    found: list[ActMap] = []

    def use(denoiser: Any) -> None:
        if apart:
            # As if the lengths differed in both cases.
            denoiser.batch_key = lambda sample: sample.conditioning
        else:
            denoiser.batch_key = lambda sample: None
        found.append(fit(denoiser, *sides, sites="auto", order="simultaneous", batch_size=8))

    latent = torch.zeros(*tiny.latent[:-2], SIDE, SIDE)
    denoisers.run_denoiser(model, latent, 0, conds, use)
    return found[0]


def _by_part(act_map: ActMap, tiny: Tiny) -> dict[str, list[float]]:
    """The shifts of all sites, by the part of the stream that they read."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for site, transport in act_map.transports.items():
        statistics = transport.statistics
        assert statistics is not None
        moved = (statistics.target_mean - statistics.source_mean) / statistics.source_std.clamp(min=1e-6)
        joined = tiny.kind in _JOINED and site.name.startswith(_JOINED[tiny.kind])
        part = f"joined, {site.segment.end} alone" if site.segment else "joined" if joined else "separate streams"
        parts[part].append(float(moved.square().mean().sqrt()))
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
