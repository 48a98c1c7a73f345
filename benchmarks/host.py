"""The nodes inside ComfyUI: startup time, cost of steering, speed of a fit, and growth of memory.

Runs in ComfyUI's own environment: ``~/comfy/ComfyUI/.venv/bin/python -m benchmarks.host --comfyui ~/comfy/ComfyUI``.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from act_core import ActMap
from act_core.prompts import load_prompt_set
from tools.results import Cell, Column, Estimate

from .lib.against_rerunning import report_speed_up
from .lib.host_unet import COLUMNS as UNET_COLUMNS
from .lib.host_unet import steering_cost
from .lib.in_host import load_pack, pack_module, seconds_of_import, version
from .lib.models import ROOT
from .lib.report import Report, at_least, at_most, below, parse
from .lib.rerun import fit_by_rerunning
from .lib.timing import timed

PROMPTS = ROOT / "prompt_sets" / "plain_to_ink.txt"
WARM_ROUNDS = 10
NEW_TOKENS = 64
IMPORTS = 5
IMPORT_COLUMNS = (Column("import"), Column("median time", "s", ".3f", "range"))
FIT_COLUMNS = (Column("fit on the demo model"), Column("median time", "s", ".2f"))
MEMORY_COLUMNS = (Column("rounds"), Column("resident memory, median", "MiB", ".0f"))
TEXT_COLUMNS = (Column("ACT Steered Text, SmolLM2-135M, float32"), Column("speed", "tokens/s", ".1f"))
IMPORT = Column("import of the pack", "s", ".2f")
SMALL_FIT = Column("fit of 32 + 32 prompts, everything included", "s", ".2f")
LARGE_FIT = Column("fit of 128 + 128 prompts, all sites", "s", ".2f")
DECODING = Column("decoding speed, steered / bare", format=".1%")


def growth_column(rounds: int) -> Column:
    return Column(f"growth of memory over {rounds} rounds", "MiB", "+.1f")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "comfy" / "ComfyUI", help="(~/comfy/ComfyUI)")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of UNet calls, bare and steered (%(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of fit, apply and free (%(default)s)")
    args = parse(parser, arguments, quick={"pairs": 5, "rounds": 40})
    host = args.comfyui.expanduser().resolve()
    nodes = load_pack(host)
    report = Report("host", f"In ComfyUI {version(host)}", args)
    report.text(f"ComfyUI {version(host)}, on the CPU; the fits are those of Fit ACT Map on the demo model.")
    imports(report, host)
    with torch.inference_mode():
        fits(report, nodes)
        memory(report, nodes, args.rounds)
        decoding(report, nodes, args.pairs // 2)
        title = "Steering a UNet of the shape of Stable Diffusion 1.5 (64 x 64, batch 2, float32)"
        report.table("unet", title, UNET_COLUMNS, steering_cost(report, args.pairs))
    return report.finish()


def imports(report: Report, host: Path) -> None:
    """The startup time that the pack adds to ComfyUI."""
    seconds = sorted(seconds_of_import(host) for _ in range(IMPORTS))
    row: list[Cell] = ["all nodes and their schemas", Estimate(median(seconds), seconds[0], seconds[-1])]
    report.table("import", "Import of the pack", IMPORT_COLUMNS, [row])
    report.figure("import", IMPORT, median(seconds), below(0.3, unit="s"))


def fit_map(nodes: Any, model: Any, clip: Any, samples: int) -> ActMap:
    """Fit ACT Map with its default settings."""
    prompts = load_prompt_set(PROMPTS)
    source, target = ("\n".join(side) for side in (prompts.source, prompts.target))
    settings = ("auto", "both", "linear", "causal", "unbounded", samples, 0, 0, 0)
    return nodes.FitACTMap.execute(model, clip, source, target, *settings).result[0]


def fits(report: Report, nodes: Any) -> None:
    """Fit ACT Map on the demo model, and its diffusion part against one pass per site in the same host."""
    model, clip, _ = nodes.LoadACTDemoModel.execute().result
    fit_map(nodes, model, clip, 32)

    def rows() -> Generator[list[Cell], None, None]:
        for samples in (32, 128):
            seconds = median(timed(lambda s=samples: fit_map(nodes, model, clip, s)) for _ in range(3))
            yield [f"Fit ACT Map, {samples} + {samples} prompts, both components", seconds]

    small, large = (float(str(row[1])) for row in report.table("fit", "Fit", FIT_COLUMNS, rows()).rows)
    report.figure("fit_32", SMALL_FIT, small, below(10, unit="s"))
    report.figure("fit_128", LARGE_FIT, large, below(3, unit="s"))
    diffusion_fits(report, model, clip)


def diffusion_fits(report: Report, model: Any, clip: Any) -> None:
    """The diffusion part of the fit of 128 + 128 prompts, by one walk and by one pass per site."""
    denoising: Any = pack_module("nodes.host.denoiser")
    encoders: Any = pack_module("nodes.host.text_encoders").TextEncoders(clip)
    latent = pack_module("nodes.host.latents").empty_latent(model, 0, 0)
    lockstep = pack_module("act_core").fit
    prompts = load_prompt_set(PROMPTS)
    texts = prompts.source[:128], prompts.target[:128]
    conditionings = [conditioning for side in texts for conditioning in encoders.encode(side)]
    source, target = denoising.encoded_sides(*texts)
    ways = {
        "lockstep": lambda denoiser: lockstep(denoiser, source, target, memory_budget=denoiser.budget()),
        "one pass per site": lambda denoiser: fit_by_rerunning(denoiser, source, target, "auto"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    maps: dict[str, ActMap] = {}
    for turn in range(3):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:

            def use(denoiser: Any, name: str = name) -> None:
                maps[name] = ways[name](denoiser)

            start = time.perf_counter()
            denoising.run_denoiser(model, latent, 0, conditionings, use)
            times[name].append(time.perf_counter() - start)
    one, other = maps["lockstep"], maps["one pass per site"]
    difference = max(
        float((mine - theirs).abs().max() / mine.abs().max())
        for site, transport in one.transports.items()
        for mine, theirs in ((getattr(transport, name), getattr(other[site.key], name)) for name in ("omega", "beta"))
    )
    report_speed_up(report, times, len(one), difference)


def memory(report: Report, nodes: Any, rounds: int) -> None:
    """Resident memory over rounds of fit, apply, draw and unload."""
    import psutil

    resident: list[float] = []
    for _ in range(rounds):
        one_round(nodes)
        gc.collect()
        resident.append(psutil.Process().memory_info().rss / 2**20)
    half = (rounds + WARM_ROUNDS) // 2
    early, late = median(resident[WARM_ROUNDS:half]), median(resident[half:])
    rows: list[list[Cell]] = [
        [f"{WARM_ROUNDS + 1} to {half}", early],
        [f"{half + 1} to {rounds}", late],
    ]
    report.table("memory", "Memory over rounds of fit, apply, draw and unload", MEMORY_COLUMNS, rows)
    # The allocator occasionally keeps a block; a map is 0.07 MB and the model 24 MB.
    report.figure("growth", growth_column(rounds), late - early, at_most(5, unit="MiB"))


def one_round(nodes: Any) -> None:
    """Fit a map, draw a picture with it, and unload the models."""
    import comfy.model_management
    import comfy.sample

    model, clip, vae = nodes.LoadACTDemoModel.execute().result
    act_map = fit_map(nodes, model, clip, 16)
    steered, steered_clip = nodes.ApplyACTSteering.execute(model, act_map, 1.0, 1.0, 0.0, 1.0, "positive", clip).result[
        :2
    ]
    positive = steered_clip.encode_from_tokens_scheduled(steered_clip.tokenize("cat"))
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    latent = torch.zeros(1, 16, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 0)
    sampling = (steered, noise, 4, 3.0, "euler", "simple", positive, negative, latent)
    vae.decode(comfy.sample.sample(*sampling, disable_pbar=True, seed=0))
    del model, clip, vae, act_map, steered, steered_clip, positive, negative, sampling
    comfy.model_management.unload_all_models()
    comfy.model_management.cleanup_models()


def decoding(report: Report, nodes: Any, pairs: int) -> None:
    """ACT Steered Text with and without a map, alternating: time of each token that it writes."""
    core: Any = pack_module("act_core")
    name = pack_module("nodes.host.language").DEFAULT
    try:
        language_model = nodes.LoadACTLanguageModel.execute(name, "auto", "auto").result[0]
    except core.MapError as error:
        report.text(f"Decoding was not measured: {error}")
        return
    act_map = core.load_map(ROOT / "pretrained_maps" / "text_night.safetensors")
    tokenizer = language_model.on_device(0).tokenizer

    def seconds(seed: int, act_map: ActMap | None) -> float:
        settings = ("When I woke up this morning, I", "", 1.0, "continue", NEW_TOKENS, 0.8, 0.95, 1.1, seed, False)
        start = time.perf_counter()
        written = nodes.ACTSteeredText.execute(language_model, *settings, act_map).result[0]
        return (time.perf_counter() - start) / len(tokenizer(written)["input_ids"])

    seconds(0, None)
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * pairs):
        for steered in (False, True) if turn % 2 else (True, False):
            times[steered].append(seconds(turn, act_map if steered else None))
    rows: list[list[Cell]] = [
        ["bare", 1 / median(times[False])],
        [f"steered, {len(act_map)} sites", 1 / median(times[True])],
    ]
    report.table("text", "Speed of ACT Steered Text", TEXT_COLUMNS, rows)
    speed = median(bare / steered for bare, steered in zip(times[False], times[True], strict=True))
    report.figure("decoding", DECODING, speed, at_least(0.94, ".0%"))


if __name__ == "__main__":
    raise SystemExit(main())
