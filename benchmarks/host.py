"""The nodes inside ComfyUI: what they add to its start, what steering costs, how fast a fit is, whether memory grows.

Runs in ComfyUI's own environment: ``~/comfy/ComfyUI/.venv/bin/python -m benchmarks.host --comfyui ~/comfy/ComfyUI``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from act_core import ActMap
from act_core.components import Component
from act_core.discovery import discover
from act_core.fitting import MicroBatch
from act_core.interception import intercepted, submodules
from act_core.maps import FitRecord
from act_core.prompts import load_prompt_set
from act_core.settings import Support
from act_core.sites import Site
from act_core.steering import steer
from act_core.transport import Transport

from .common import ROOT, Check, cpu_name, print_table, report, timed
from .rerun import fit_by_rerunning

PROMPTS = ROOT / "prompt_sets" / "plain_to_ink.txt"
WARM_ROUNDS = 10
NEW_TOKENS = 64
IMPORTS = 5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "comfy" / "ComfyUI", help="(%(default)s)")
    parser.add_argument("--pairs", type=int, default=12, help="of calls of the UNet, bare and steered (%(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="of fit, apply and free (%(default)s)")
    args = parser.parse_args(arguments)
    nodes = _nodes(args.comfyui)
    version = next(iter((args.comfyui / "comfyui_version.py").read_text("utf-8").split('"')[1:]), "")
    print(f"## In ComfyUI {version}\n\n{cpu_name()}, {torch.get_num_threads()} threads; torch {torch.__version__}.")
    checks = imports(args.comfyui)
    with torch.inference_mode():
        checks += fits(nodes)
        checks += memory(nodes, args.rounds)
        checks += decoding(nodes, args.pairs // 2)
        checks += steering(args.pairs)
    return report(checks)


def _nodes(root: Path) -> Any:
    """The pack, imported as ComfyUI does."""
    root = root.expanduser()
    sys.path.insert(0, str(root))
    sys.argv[1:] = ["--cpu"]
    os.chdir(root)
    import comfy.options

    comfy.options.enable_args_parsing()
    init = ROOT / "__init__.py"
    spec = importlib.util.spec_from_file_location("act_pack", init, submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    pack = sys.modules["act_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    nodes = importlib.import_module("act_pack.nodes")
    nodes.folders.register()
    return nodes


_IMPORT = """
import asyncio, importlib.util, os, sys, time
root, pack = sys.argv[1:]
sys.path.insert(0, root)
sys.argv[1:] = ["--cpu"]
os.chdir(root)
import comfy.options
comfy.options.enable_args_parsing()
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
start = time.perf_counter()
init = os.path.join(pack, "__init__.py")
spec = importlib.util.spec_from_file_location("act_pack", init, submodule_search_locations=[pack])
module = sys.modules["act_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def schemas():
    for node in await (await module.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()
asyncio.run(schemas())
print(time.perf_counter() - start)
"""


def imports(root: Path) -> list[Check]:
    """What the pack adds to a start of ComfyUI, after the host's own nodes: the median of fresh processes."""
    command = [sys.executable, "-c", _IMPORT, root.expanduser(), ROOT]
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        for _ in range(IMPORTS)
    ]
    rows = [("all nodes and their schemas", f"{median(seconds):.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}")]
    print_table(("import of the pack", "seconds", "range"), rows)
    return [Check("import", f"{median(seconds):.2f} s", "< 0.3 s", median(seconds) < 0.3)]


def _fitted(nodes: Any, model: Any, clip: Any, samples: int) -> ActMap:
    prompts = load_prompt_set(PROMPTS)
    source, target = ("\n".join(side) for side in (prompts.source, prompts.target))
    settings = ("auto", "both", "linear", "causal", "unbounded", samples, 0, 0, 0)
    return nodes.FitACTMap.execute(model, clip, source, target, *settings).result[0]


def fits(nodes: Any) -> list[Check]:
    """Fit ACT Map on the demo model, and its diffusion part against a run for each site in the same host."""
    model, clip, _ = nodes.LoadACTDemoModel.execute().result
    _fitted(nodes, model, clip, 32)
    whole = {
        samples: median(timed(lambda s=samples: _fitted(nodes, model, clip, s)) for _ in range(3))
        for samples in (32, 128)
    }

    fitting: Any = sys.modules["act_pack.nodes.host.fitting"]
    prompts = load_prompt_set(PROMPTS)
    sides = [
        list(zip(own[:128], fitting.encode(clip, own[:128]), strict=True)) for own in (prompts.source, prompts.target)
    ]
    latent = fitting.empty_latent(model, 0, 0)
    lockstep = fitting.fit
    times: dict[str, list[float]] = {"lockstep": [], "a run for each site": []}
    maps: dict[str, ActMap] = {}

    def rerun(denoiser: Any, source: Any, target: Any, **_: Any) -> Any:
        return fit_by_rerunning(denoiser, source, target, "auto")

    for turn in range(3):
        for name in list(times) if turn % 2 else list(times)[::-1]:
            fitting.fit = lockstep if name == "lockstep" else rerun
            start = time.perf_counter()
            try:
                maps[name] = fitting.fit_model(model, latent, 0, *sides)
            finally:
                fitting.fit = lockstep
            times[name].append(time.perf_counter() - start)
    sites = len(maps["lockstep"])
    ratio = median(times["a run for each site"]) / median(times["lockstep"])
    difference = max(_differences(*maps.values()))
    rows = [(f"Fit ACT Map, {s} + {s} prompts, both components", f"{seconds:.2f} s") for s, seconds in whole.items()]
    rows += [(f"diffusion model alone, 128 + 128, {name}", f"{median(t):.2f} s") for name, t in times.items()]
    print_table(("fit on the demo model", "seconds"), rows)
    return [
        Check("fit of 32 + 32, everything included", f"{whole[32]:.2f} s", "< 10 s", whole[32] < 10),
        Check("fit of 128 + 128, all sites", f"{whole[128]:.2f} s", "< 3 s", whole[128] < 3),
        Check(f"lockstep, {sites} sites", f"{ratio:.1f} times", f">= {0.4 * sites:.1f}", ratio >= 0.4 * sites),
        Check("largest relative difference of the maps", f"{difference:.1e}", "<= 1e-6", difference <= 1e-6),
    ]


def _differences(one: ActMap, other: ActMap) -> Iterator[float]:
    """Largest difference at each site, relative to the largest value there."""
    for site, transport in one.transports.items():
        for name in ("omega", "beta"):
            mine, theirs = getattr(transport, name), getattr(other[site.key], name)
            yield float((mine - theirs).abs().max() / mine.abs().max())


def memory(nodes: Any, rounds: int) -> list[Check]:
    """Resident memory over rounds of fit, apply, draw and unload."""
    import comfy.model_management
    import comfy.sample
    import psutil

    seen: list[float] = []
    for _ in range(rounds):
        model, clip, vae = nodes.LoadACTDemoModel.execute().result
        act_map = _fitted(nodes, model, clip, 16)
        steered, steered_clip = nodes.ApplyACTSteering.execute(
            model, act_map, 1.0, 1.0, 0.0, 1.0, "positive", clip
        ).result
        positive = steered_clip.encode_from_tokens_scheduled(steered_clip.tokenize("cat"))
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        latent = torch.zeros(1, 16, 8, 8)
        noise = comfy.sample.prepare_noise(latent, 0)
        sampling = (steered, noise, 4, 3.0, "euler", "simple", positive, negative, latent)
        vae.decode(comfy.sample.sample(*sampling, disable_pbar=True, seed=0))
        del model, clip, vae, act_map, steered, steered_clip, positive, negative
        comfy.model_management.unload_all_models()
        comfy.model_management.cleanup_models()
        gc.collect()
        seen.append(psutil.Process().memory_info().rss / 2**20)
    half = (rounds + WARM_ROUNDS) // 2
    early, late = median(seen[WARM_ROUNDS:half]), median(seen[half:])
    print_table(("memory", "MiB"), [("rounds 11 to half", f"{early:.0f}"), ("second half", f"{late:.0f}")])
    # The allocator keeps blocks here and there; a map is 0.07 MB and the model 24 MB.
    return [Check(f"growth over {rounds} rounds", f"{late - early:+.1f} MiB", "<= 5 MiB", late - early <= 5)]


def decoding(nodes: Any, pairs: int) -> list[Check]:
    """ACT Steered Text with and without a map, by turns: time for each token that it writes."""
    core = importlib.import_module("act_pack.act_core")
    name = nodes.text.language.DEFAULT
    try:
        language_model = nodes.LoadACTLanguageModel.execute(name, "auto", "auto").result[0]
    except core.MapError as error:
        print(f"\nDecoding was not measured: {error}")
        return []
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
    speed = median(bare / steered for bare, steered in zip(times[False], times[True], strict=True))
    rows = [("bare", f"{1 / median(times[False]):.1f}"), (f"{len(act_map)} sites", f"{1 / median(times[True]):.1f}")]
    print_table(("ACT Steered Text, SmolLM2-135M, float32", "tokens a second"), rows)
    return [Check("decoding speed, steered against bare", f"{speed:.1%}", ">= 94%", speed >= 0.94)]


def steering(pairs: int) -> list[Check]:
    """Calls of a UNet of the shape of Stable Diffusion 1.5; the map goes on and off at each, as in the node."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    torch.manual_seed(0)
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
        num_heads=8,
        num_head_channels=-1,
        use_spatial_transformer=True,
        context_dim=768,
        use_linear_in_transformer=False,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    ).eval()
    for parameter in unet.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 0
        torch.nn.init.normal_(parameter, 0.0 if fan else 1.0, fan**-0.5 if fan else 0.01)
    inputs = torch.randn(2, 4, 64, 64), torch.full((2,), 999.0)
    context = torch.randn(2, 77, 768)

    def call() -> Any:
        return unet(*inputs, context=context)

    component = Component("diffusion_model", unet, "UNetModel")
    sites = discover([component], "norms", MicroBatch(2, call).run, 2)
    moved = _megabytes(unet, sites, call)
    checks: list[Check] = []
    rows: list[tuple[object, ...]] = []
    supports: dict[Support, float] = {"unbounded": 0.04, "observed": 0.06}
    for support, most in supports.items():
        transports = {}
        for site in sites:
            shape = (site.channels,)
            omega, beta = 1 + 0.1 * torch.randn(shape), 0.1 * torch.randn(shape)
            bounds = (torch.full(shape, -2.0), torch.full(shape, 2.0)) if support == "observed" else (None, None)
            transports[site] = Transport(omega, beta, *bounds)
        on = steer(unet, ActMap(transports, FitRecord(support=support)))
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(pairs + 1):
            for steered in (False, True) if turn % 2 else (True, False):
                start = time.perf_counter()
                if steered:
                    with on:
                        call()
                else:
                    call()
                times[steered].append(time.perf_counter() - start)
        # The first pair chooses kernels and takes memory.
        pairs_of_times = list(zip(times[False][1:], times[True][1:], strict=True))
        extra = sorted(b / a - 1 for a, b in pairs_of_times)
        each = 1e3 * median(b - a for a, b in pairs_of_times) / len(sites)
        quarter = len(extra) // 4
        cost, low, high = median(extra), extra[quarter], extra[-1 - quarter]
        bare = f"{median(times[False][1:]):.2f}"
        shift = f"{cost:+.1%} ({low:+.1%} to {high:+.1%})"
        rows.append((f"{len(sites)} norms, {support}", bare, shift, f"{each:.2f}", f"{moved:.0f}"))
        checks.append(Check(f"steering, {support}", f"{cost:+.1%}", f"<= {most:.0%}", cost <= most))
    print_table(("SD1.5-shaped UNet, 64 x 64, batch 2, float32", "bare, s", "steered", "ms a site", "MB moved"), rows)
    return checks


def _megabytes(unet: torch.nn.Module, sites: Sequence[Site], call: Callable[[], Any]) -> float:
    """Size of all the activations that a map on these sites reads and writes anew in one call."""
    sizes: list[int] = []

    def note(output: torch.Tensor) -> torch.Tensor:
        sizes.append(output.nbytes)
        return output

    modules = submodules(unet)
    with intercepted({modules[site.name]: note for site in sites}):
        call()
    return sum(sizes) / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
