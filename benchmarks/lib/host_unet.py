"""The cost of steering a random UNet of the shape of Stable Diffusion 1.5, built from ComfyUI's own classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any, cast

import torch

from act_core import ActMap
from act_core.architectures import architecture_of
from act_core.components import Component
from act_core.discovery import discover
from act_core.gates import Gate
from act_core.interception import intercepted, submodules
from act_core.records import FitRecord
from act_core.settings import Support
from act_core.sites import Site
from act_core.steering import steer
from act_core.steering.forward import SteeredForward
from act_core.transport import Transport
from tools.results import Cell, Column, Estimate

from .report import Report, at_most
from .timing import added, alternate

MAX_COST: dict[Support, float] = {"unbounded": 0.04, "observed": 0.02}
MAX_GATE_COST = 0.03
GATE_REPEATS = 20
COLUMNS = (
    Column("map"),
    Column("one call, bare", "s", ".2f"),
    Column("steered", format="+.1%", spread="middle half"),
    Column("per site", "ms", ".2f"),
    Column("activations rewritten", "MB", ".0f"),
)


def random_unet() -> Any:
    """The UNet, in float32 on the CPU."""
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
    return unet


def random_map(sites: Sequence[Site], support: Support) -> ActMap:
    """A random map on these sites."""
    transports: dict[Site, Transport] = {}
    for site in sites:
        shape = (site.channels,)
        omega, beta = 1 + 0.1 * torch.randn(shape), 0.1 * torch.randn(shape)
        bounds = (torch.full(shape, -2.0), torch.full(shape, 2.0)) if support == "observed" else (None, None)
        gate = Gate(torch.randn(shape) * site.channels**-0.5, 0.0) if support == "gated" else None
        transports[site] = Transport(omega, beta, *bounds, gate=gate)
    return ActMap(transports, FitRecord(support=support))


def steering_cost(report: Report, pairs: int) -> Generator[list[Cell], None, None]:
    """A row per support: calls of the UNet with a map that is added and removed at each call, as in the node.

    Calls without a map alternate with them. What gates add is less than such calls vary by: it is timed at the sites
    alone, on the activations of one call, with and without the gates.
    """
    unet = random_unet()
    inputs = torch.randn(2, 4, 64, 64), torch.full((2,), 999.0)
    context = torch.randn(2, 77, 768)

    def call() -> object:
        return unet(*inputs, context=context)

    component = Component("diffusion_model", unet, architecture_of(unet))
    sites = discover([component], "norms", call, 2)
    activations = _activations(unet, sites, call)
    rewritten = sum(activation.nbytes for activation in activations.values()) / 1e6
    one_call = 0.0
    for support, bound in MAX_COST.items():
        on = steer(unet, random_map(sites, support))
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(pairs + 1):
            for steered in (False, True) if turn % 2 else (True, False):
                start = time.perf_counter()
                with on if steered else nullcontext():
                    call()
                times[steered].append(time.perf_counter() - start)
        # Warm-up: the first pair chooses kernels and allocates memory.
        bare, moved = times[False][1:], times[True][1:]
        cost = added(bare, moved)
        per_site = 1e3 * median(b - a for a, b in zip(bare, moved, strict=True)) / len(sites)
        yield [f"{len(sites)} norms, {support}", median(bare), cost, per_site, rewritten]
        column = Column(f"steering the UNet, {support}", format="+.1%", spread="middle half")
        report.figure(f"unet_{support}", column, cost, at_most(bound, ".0%"))
        one_call = median(bare)
    gates = _gate_seconds(unet, activations)
    share = Estimate(*(seconds / one_call for seconds in (gates.value, gates.low, gates.high)))
    yield [f"{len(sites)} norms, gates alone", one_call, share, 1e3 * gates.value / len(sites), rewritten]
    column = Column("gates of the UNet, alone", format="+.2%", spread="middle half")
    report.figure("unet_gates", column, share, at_most(MAX_GATE_COST, ".0%"))


def _gate_seconds(unet: torch.nn.Module, activations: Mapping[Site, torch.Tensor]) -> Estimate:
    """Seconds that gates add to the steering of one call: median over repeats, with the middle half."""
    modules, sites = submodules(unet), list(activations)

    def steered(support: Support) -> Callable[[], None]:
        steering = steer(unet, random_map(sites, support), must_fire=False)

        def run() -> None:
            with steering:
                for site, activation in activations.items():
                    cast("SteeredForward", modules[site.name].forward).slots[site.output or 0](activation)

        return run

    sides = {"unbounded": steered("unbounded"), "gated": steered("gated")}
    alternate(sides, 2)  # Warm-up.
    times = alternate(sides, GATE_REPEATS)
    extra = sorted(b - a for a, b in zip(times["unbounded"], times["gated"], strict=True))
    quarter = len(extra) // 4
    return Estimate(median(extra), extra[quarter], extra[-1 - quarter])


def _activations(unet: torch.nn.Module, sites: Sequence[Site], call: Callable[[], object]) -> dict[Site, torch.Tensor]:
    """What the sites return in one call."""
    found: dict[Site, torch.Tensor] = {}

    def note(site: Site, output: torch.Tensor) -> torch.Tensor:
        found[site] = output.clone()
        return output

    modules = submodules(unet)
    with intercepted({modules[site.name]: partial(note, site) for site in sites}):
        call()
    return found
