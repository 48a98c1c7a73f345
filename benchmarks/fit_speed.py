"""How fast the lockstep fit is: against a pass for each site, against apple/ml-act, and as prompts and sites grow."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from act_core import ActMap, fit
from act_core.models.transformers import TransformersModel
from act_core.prompts import PromptSet
from act_core.transport import fit_transport

from .common import (
    Check,
    Ratio,
    alternate,
    load_model,
    load_prompts,
    print_table,
    print_title,
    report,
    timed,
)
from .ml_act import Fitted, MlAct
from .rerun import fit_by_rerunning

# Of the 60 block norms of the model: every fourth, every second, all.
SITES = {15: "*.layers.*[02468].input_layernorm", 30: "*.layers.*.input_layernorm", 60: "norms"}
LEAST_DEVIATION = 1e-4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_speed", description=__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="prompts a side (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts that run together (%(default)s)")
    parser.add_argument("--sites", type=int, choices=SITES, default=60, help="how many norms (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of either side (%(default)s)")
    parser.add_argument("--growth", type=int, nargs="+", default=[32, 64, 112], help="prompts a side of the last table")
    parser.add_argument("--ml-act", type=Path, metavar="PATH", help="a checkout of github.com/apple/ml-act")
    parser.add_argument("--ml-act-repeats", type=int, default=1, help="turns with either of its supports (%(default)s)")
    parser.add_argument("--skip-rerun", action="store_true", help="leave the comparison with re-running out")
    args = parser.parse_args(arguments)

    print_title("Speed of the fit")
    print(f"SmolLM2-135M, float32, {args.prompts} + {args.prompts} prompts in batches of {args.batch_size}.")
    model = load_model()
    fit(model, *_sides(load_prompts(4)), sites="norms")
    checks: list[Check] = []
    if not args.skip_rerun:
        checks += against_rerunning(model, load_prompts(args.prompts), args)
    if args.ml_act:
        checks += against_ml_act(model, load_prompts(args.prompts), args)
    else:
        print("\n**SKIPPED: the comparison with ml-act. Give a checkout of it with --ml-act PATH.**")
    growth(model, args.growth, args)
    return report(checks)


def against_rerunning(model: TransformersModel, prompts: PromptSet, args: argparse.Namespace) -> list[Check]:
    """The same map, by one walk and by one pass for each site."""
    maps: dict[str, ActMap] = {}
    sites = SITES[args.sites]

    def lockstep() -> None:
        maps["lockstep"] = fit(model, *_sides(prompts), sites=sites, batch_size=args.batch_size)

    def rerunning() -> None:
        maps["re-running"] = fit_by_rerunning(model, *_sides(prompts), sites, batch_size=args.batch_size)

    times = alternate({"lockstep": lockstep, "re-running": rerunning}, args.repeats)
    print(f"\n### Lockstep against a pass for each site ({args.sites} norms)")
    print_table(("fit", "median s", "turns"), [(name, f"{median(t):.2f}", len(t)) for name, t in times.items()])
    ratio = Ratio.of(times["re-running"], times["lockstep"])
    difference = max(maps["lockstep"].difference(maps["re-running"]).values())
    goal = 0.4 * args.sites
    return [
        Check("times as fast as re-running", str(ratio), f">= {goal:g} (0.4 x sites)", ratio.value >= goal),
        Check("largest relative difference of a coefficient", f"{difference:.1e}", "<= 1e-6", difference <= 1e-6),
    ]


# Slopes and offsets of one site.
Coefficients = tuple[Tensor, Tensor]


class Difference(NamedTuple):
    """The largest difference between two maps of one site, over the channels that count.

    Attributes:
        omega: of a slope, relative to the greater of the pair.
        mean: of the transported source mean, in deviations of the target.
        beta: of an offset, relative to the greater of the pair.
        channel: where the slope differs most.
        compared, excluded: how many channels.
    """

    omega: float
    mean: float
    beta: float
    channel: int
    compared: int
    excluded: int


def compare(mine: Coefficients, theirs: Coefficients, source: Tensor, target: Tensor) -> Difference:
    """Of two maps of one site, over the channels whose source values `source` deviate by more than 1e-4."""
    source, target = source.double(), target.double()
    counts = source.std(0, correction=0) > LEAST_DEVIATION
    (omega, beta), (omega_2, beta_2) = ((w.double(), b.double()) for w, b in (mine, theirs))
    slopes = _relative(omega, omega_2).masked_fill(~counts, 0)
    moved = (omega - omega_2) * source.mean(0) + beta - beta_2
    means = (moved.abs() / target.std(0, correction=0)).masked_fill(~counts, 0)
    offsets = _relative(beta, beta_2).masked_fill(~counts, 0)
    compared = int(counts.sum())
    return Difference(
        float(slopes.max()),
        float(means.max()),
        float(offsets.max()),
        int(slopes.argmax()),
        compared,
        counts.numel() - compared,
    )


def against_ml_act(model: TransformersModel, prompts: PromptSet, args: argparse.Namespace) -> list[Check]:
    """The same prompts on the same model object, by the reference implementation.

    Its support is the interval of pooled values by default (``q_0_100``): tokens at its edge move or do not by a
    rounding error, and what follows differs. Without support (``q_all``) nothing hangs on rounding.
    """
    pattern = SITES[args.sites]
    regex = r".*\.layers\..*_layernorm" if pattern == "norms" else pattern.replace(".", r"\.").replace("*", ".*")
    reference = MlAct(args.ml_act, model, [regex])
    alike = {
        "q_all": {"support": "unbounded", "moved": "both"},
        "q_0_100": {"support": "observed", "interval": "pooled", "moved": "both"},
    }
    theirs: dict[str, dict[str, Fitted]] = {}
    ours: dict[str, ActMap] = {}

    def lockstep(batch_size: int, **settings: str) -> ActMap:
        return fit(model, *_sides(prompts), sites=pattern, batch_size=batch_size, **settings)  # pyright: ignore

    times: dict[str, list[float]] = {}
    for quantiles, settings in alike.items():

        def run_theirs(quantiles: str = quantiles) -> None:
            theirs[quantiles] = reference.fit(*_sides(prompts), args.batch_size, quantiles)

        def run_ours(quantiles: str = quantiles, settings: Mapping[str, str] = settings) -> None:
            ours[quantiles] = lockstep(args.batch_size, **settings)

        sides: dict[str, Callable[[], object]] = {
            "ml-act, incremental": run_theirs,
            "lockstep, default settings": lambda: lockstep(args.batch_size),
            "lockstep, settings of ml-act": run_ours,
        }
        for name, seconds in alternate(sides, args.ml_act_repeats).items():
            times.setdefault(name, []).extend(seconds)
    ours["other batches"] = lockstep(max(1, args.batch_size * 3 // 8), **alike["q_0_100"])

    print(f"\n### Lockstep against apple/ml-act ({args.sites} norms)")
    print_table(("fit", "median s", "turns"), [(name, f"{median(t):.2f}", len(t)) for name, t in times.items()])

    print(
        "\nLargest difference of a slope, site by site. 'Estimator': `fit_transport` on the values that ml-act has "
        "measured. With pooled support our own fit, too, differs from itself when its batches are made otherwise: "
        "tokens at the edge of the interval move or do not by a rounding error. It is the yardstick of that column."
    )
    rows: list[tuple[object, ...]] = []
    free: dict[str, Difference] = {}
    estimator: dict[str, Difference] = {}
    for number, (site, transport) in enumerate(ours["q_all"].transports.items(), start=1):
        unbounded, pooled = (theirs[quantiles][site.name] for quantiles in alike)
        bounded, other = ours["q_0_100"].transports[site], ours["other batches"].transports[site]
        again = fit_transport(pooled.source, pooled.target)
        values, pooled_values = (unbounded.source, unbounded.target), (pooled.source, pooled.target)
        free[site.key] = compare((transport.omega, transport.beta), unbounded[:2], *values)
        estimator[site.key] = compare((again.omega, again.beta), pooled[:2], *pooled_values)
        gated = compare((bounded.omega, bounded.beta), pooled[:2], *pooled_values)
        own = compare((bounded.omega, bounded.beta), (other.omega, other.beta), *pooled_values)
        if number in (1, 2, 3, 4, 6, 10, 15, 20, 30, 40, 50, len(ours["q_all"])):
            figures = (free[site.key], estimator[site.key], gated, own)
            rows.append((f"{number} `{site.name}`", *(f"{d.omega:.1e}" for d in figures)))
    print_table(("site", "unbounded (q_all)", "estimator", "pooled (q_0_100)", "ours against ours, pooled"), rows)

    worst = max(free, key=lambda key: free[key].omega)
    compared, excluded = (sum(d[i] for d in free.values()) for i in (4, 5))
    print(
        f"\nUnbounded: {compared} channels compared, {excluded} excluded (source deviation up to {LEAST_DEVIATION:g}; "
        "ml-act adds random noise of 1e-8 to its values, which their slopes show). Worst slope: channel "
        f"{free[worst].channel} of {worst}. Offsets are compared by what they are for, the transported mean, in "
        "deviations of the target: where it lies near 0 a bare relative difference says nothing. It is "
        f"{max(d.beta for d in free.values()):.1e} at most."
    )
    slope, mean = (max(d[i] for d in free.values()) for i in (0, 1))
    same = max(d.omega for d in estimator.values())
    ratio = Ratio.of(times["ml-act, incremental"], times["lockstep, default settings"])
    ratio_alike = Ratio.of(times["ml-act, incremental"], times["lockstep, settings of ml-act"])
    return [
        Check("times as fast as ml-act, default settings", str(ratio), ">= 40", ratio.value >= 40),
        Check("times as fast as ml-act, its settings", str(ratio_alike), ">= 40", ratio_alike.value >= 40),
        Check("relative difference of slopes to ml-act, unbounded", f"{slope:.1e}", "<= 1e-3", slope <= 1e-3),
        Check("difference of the transported mean, unbounded", f"{mean:.1e} deviations", "<= 1e-3", mean <= 1e-3),
        Check("relative difference of slopes on ml-act's own values", f"{same:.1e}", "<= 1e-3", same <= 1e-3),
    ]


def growth(model: TransformersModel, counts: Sequence[int], args: argparse.Namespace) -> None:
    """Time of a fit against prompts and sites, beside plain passes of the same prompts."""
    most = max(SITES)
    cases = [(count, most) for count in counts] + [(args.prompts, sites) for sites in SITES if sites != most]
    cases = sorted(dict.fromkeys(cases))

    def plain(prompts: PromptSet) -> None:
        with torch.no_grad():
            for batch in itertools.chain(*(model.batches(side, args.batch_size) for side in _sides(prompts))):
                batch.run()

    fits: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    passes: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(args.repeats):
        for count, sites in cases:
            prompts = load_prompts(count)
            passes[count, sites].append(timed(lambda p=prompts: plain(p)))
            run = lambda p=prompts, s=SITES[sites]: fit(model, *_sides(p), sites=s, batch_size=args.batch_size)  # noqa: E731
            fits[count, sites].append(timed(run))
    print("\n### Growth with prompts and sites")
    rows: list[tuple[object, ...]] = []
    for case in cases:
        seconds, plainly = median(fits[case]), median(passes[case])
        rows.append(
            (
                f"{case[0]} + {case[0]}",
                case[1],
                f"{seconds:.2f}",
                f"{1e3 * seconds / (2 * case[0]):.1f}",
                f"{1e3 * (seconds - plainly) / case[1]:.1f}",
                f"{seconds / plainly:.2f}",
            )
        )
    columns = ("prompts", "sites", "median s", "ms a prompt", "ms a site, beyond a plain pass", "plain passes")
    print_table(columns, rows)
    print("\nLinear in the prompts: 'ms a prompt' stays. Linear in the sites: 'ms a site' stays, or falls.")


def _relative(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs() / torch.maximum(x.abs(), y.abs()).clamp(min=torch.finfo(torch.float64).tiny)


def _sides(prompts: PromptSet) -> tuple[Sequence[str], Sequence[str]]:
    return prompts.source, prompts.target


if __name__ == "__main__":
    raise SystemExit(main())
