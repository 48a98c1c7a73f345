"""Compares the lockstep fit with apple/ml-act, the reference implementation: its speed, and the maps."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from act_core import ActMap, fit
from act_core.models.transformers import TransformersModel
from act_core.prompts import PromptSet
from act_core.transport import fit_transport
from tools.results import Cell, Column

from .fit_speed import SITES
from .lib.against_rerunning import FIT_COLUMNS
from .lib.ml_act import MlAct, MlActMap
from .lib.models import load_model, load_prompts
from .lib.report import Report, at_least, at_most, parse
from .lib.timing import alternate, ratio

# Channels whose source has a smaller standard deviation are left out: ml-act adds random noise of 1e-8 to its values.
MIN_DEVIATION = 1e-4
SHOWN = (1, 2, 3, 4, 6, 10, 15, 20, 30, 40, 50, 60)
# The quantiles of ml-act, and the settings that mean the same here.
SAME_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "q_all": {"support": "unbounded", "moved": "both"},
    "q_0_100": {"support": "observed", "interval": "pooled", "moved": "both"},
}
SITE_COLUMNS = (
    Column("site"),
    Column("unbounded (q_all)", format=".1e"),
    Column("estimator alone", format=".1e"),
    Column("pooled (q_0_100)", format=".1e"),
    Column("our fit against itself, pooled", format=".1e"),
)
SPEED_UP = Column("times as fast as ml-act, default settings", format=".1f", spread="range")
SPEED_UP_SAME = Column("times as fast as ml-act, its settings", format=".1f", spread="range")
SLOPES = Column("relative difference of slopes to ml-act, unbounded", format=".1e")
MEANS = Column("difference of the transported mean, unbounded", "deviations", ".1e")
ESTIMATOR = Column("relative difference of slopes on ml-act's own values", format=".1e")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_ml_act", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of github.com/apple/ml-act")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per side (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts that run together (%(default)s)")
    parser.add_argument("--sites", type=int, choices=SITES, default=60, help="how many norms (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs with each support of ml-act (%(default)s)")
    args = parse(parser, arguments)

    report = Report("compare_ml_act", "Lockstep against apple/ml-act", args)
    model, prompts = load_model(), load_prompts(args.prompts)
    pattern = SITES[args.sites]
    regex = r".*\.layers\..*_layernorm" if pattern == "norms" else pattern.replace(".", r"\.").replace("*", ".*")
    reference = MlAct(args.checkout, model, [regex])
    warm_up = load_prompts(4)
    fit(model, warm_up.source, warm_up.target, sites="norms")
    report.text(
        f"SmolLM2-135M, float32, {args.prompts} + {args.prompts} prompts in batches of {args.batch_size}, "
        f"{args.sites} norms."
    )
    fitted = fit_both(report, reference, model, prompts, args)
    compare_maps(report, fitted)
    return report.finish()


class Fitted(NamedTuple):
    """Maps of both implementations, by the quantiles of ml-act; ours also with other batches, ``q_0_100`` alone."""

    theirs: dict[str, MlActMap]
    ours: dict[str, ActMap]
    other_batches: ActMap


def fit_both(
    report: Report, reference: MlAct, model: TransformersModel, prompts: PromptSet, args: argparse.Namespace
) -> Fitted:
    """Time both implementations on the same prompts and the same model object."""
    theirs: dict[str, MlActMap] = {}
    ours: dict[str, ActMap] = {}
    sides = prompts.source, prompts.target

    def lockstep(batch_size: int, settings: Mapping[str, Any]) -> ActMap:
        return fit(model, *sides, sites=SITES[args.sites], batch_size=batch_size, **settings)

    times: dict[str, list[float]] = {}
    for quantiles, settings in SAME_SETTINGS.items():

        def run_theirs(quantiles: str = quantiles) -> None:
            theirs[quantiles] = reference.fit(*sides, args.batch_size, quantiles)

        def run_ours(quantiles: str = quantiles, settings: Mapping[str, Any] = settings) -> None:
            ours[quantiles] = lockstep(args.batch_size, settings)

        runs: dict[str, Callable[[], object]] = {
            "ml-act, incremental": run_theirs,
            "lockstep, default settings": lambda: lockstep(args.batch_size, {}),
            "lockstep, settings of ml-act": run_ours,
        }
        for name, seconds in alternate(runs, args.repeats).items():
            times.setdefault(name, []).extend(seconds)
    rows: list[list[Cell]] = [[name, median(own), len(own)] for name, own in times.items()]
    report.table("times", "Time of a fit", FIT_COLUMNS, rows)
    slow = times["ml-act, incremental"]
    report.figure("speed_up", SPEED_UP, ratio(slow, times["lockstep, default settings"]), at_least(36))
    report.figure("speed_up_same", SPEED_UP_SAME, ratio(slow, times["lockstep, settings of ml-act"]), at_least(36))
    return Fitted(theirs, ours, lockstep(max(1, args.batch_size * 3 // 8), SAME_SETTINGS["q_0_100"]))


class SiteDifferences(NamedTuple):
    """How two maps differ at one site, by the four measures of the table."""

    unbounded: Difference
    estimator: Difference
    pooled: Difference
    ours: Difference


def compare_maps(report: Report, fitted: Fitted) -> None:
    """The differences site by site, and the largest of them."""
    found = {site.key: _site_differences(fitted, site.key, site.name) for site in fitted.ours["q_all"].transports}

    def rows() -> Generator[list[Cell], None, None]:
        for number, (key, differences) in enumerate(found.items(), start=1):
            if number in (*SHOWN, len(found)):
                name = key.partition("/")[2]
                yield [f"{number} `{name}`", *(difference.omega for difference in differences)]

    report.table("sites", "Largest difference of a slope, by site", SITE_COLUMNS, rows())
    worst = max(found, key=lambda key: found[key].unbounded.omega)
    unbounded = [differences.unbounded for differences in found.values()]
    report.text(
        f"Unbounded: {sum(d.compared for d in unbounded)} channels are compared, {sum(d.excluded for d in unbounded)} "
        f"are left out, whose source deviates by {MIN_DEVIATION:g} or less (ml-act adds random noise of 1e-8 to its "
        f"values, which shows in their slopes). The worst slope is that of channel {found[worst].unbounded.channel} of "
        f"{worst}. Offsets are compared by the transported mean, in standard deviations of the target; their own "
        f"largest relative difference is {max(d.beta for d in unbounded):.1e}, at an offset near 0."
    )
    report.figure("slopes", SLOPES, max(d.omega for d in unbounded), at_most(1e-3))
    report.figure("means", MEANS, max(d.mean for d in unbounded), at_most(1e-3))
    report.figure("estimator", ESTIMATOR, max(d.estimator.omega for d in found.values()), at_most(1e-3))


def _site_differences(fitted: Fitted, key: str, name: str) -> SiteDifferences:
    theirs = {quantiles: fitted.theirs[quantiles][name] for quantiles in SAME_SETTINGS}
    ours = {quantiles: fitted.ours[quantiles][key] for quantiles in SAME_SETTINGS}
    other = fitted.other_batches[key]
    pooled = theirs["q_0_100"]
    again = fit_transport(pooled.source, pooled.target)
    pooled_values, coefficients = (pooled.source, pooled.target), (pooled.omega, pooled.beta)
    gated = ours["q_0_100"].omega, ours["q_0_100"].beta
    unbounded = theirs["q_all"]
    return SiteDifferences(
        compare(
            (ours["q_all"].omega, ours["q_all"].beta),
            (unbounded.omega, unbounded.beta),
            unbounded.source,
            unbounded.target,
        ),
        compare((again.omega, again.beta), coefficients, *pooled_values),
        compare(gated, coefficients, *pooled_values),
        compare(gated, (other.omega, other.beta), *pooled_values),
    )


# Slopes and offsets of one site.
Coefficients = tuple[Tensor, Tensor]


class Difference(NamedTuple):
    """The largest difference between two maps of one site, over the channels that are compared.

    Attributes:
        omega: of a slope, relative to the larger of the two.
        mean: of the transported source mean, in standard deviations of the target.
        beta: of an offset, relative to the larger of the two.
        channel: the channel whose slope differs most.
        compared, excluded: numbers of channels.
    """

    omega: float
    mean: float
    beta: float
    channel: int
    compared: int
    excluded: int


def compare(one: Coefficients, other: Coefficients, source: Tensor, target: Tensor) -> Difference:
    """Compare two maps of one site over the channels whose source has a standard deviation above `MIN_DEVIATION`.

    Args:
        one, other: slopes and offsets, ``[channels]`` each.
        source, target: pooled values, ``[prompts, channels]``.
    """
    source, target = source.double(), target.double()
    varies = source.std(0, correction=0) > MIN_DEVIATION
    (omega, beta), (other_omega, other_beta) = ((w.double(), b.double()) for w, b in (one, other))
    slopes = _relative(omega, other_omega).masked_fill(~varies, 0)
    apart = (omega - other_omega) * source.mean(0) + beta - other_beta
    means = (apart.abs() / target.std(0, correction=0)).masked_fill(~varies, 0)
    offsets = _relative(beta, other_beta).masked_fill(~varies, 0)
    compared = int(varies.sum())
    return Difference(
        float(slopes.max()),
        float(means.max()),
        float(offsets.max()),
        int(slopes.argmax()),
        compared,
        varies.numel() - compared,
    )


def _relative(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs() / torch.maximum(x.abs(), y.abs()).clamp(min=torch.finfo(torch.float64).tiny)


if __name__ == "__main__":
    raise SystemExit(main())
