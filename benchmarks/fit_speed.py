"""How fast the lockstep fit is compared with one pass per site, and how it scales with prompts and sites."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Generator, Sequence
from statistics import median

import torch

from act_core import ActMap, fit
from act_core.fitting import FitModel
from act_core.models.transformers import TransformersModel
from act_core.prompts import PromptSet
from tools.results import Cell, Column

from .lib.against_rerunning import measure_against_rerunning
from .lib.models import load_model, load_prompts
from .lib.report import Report, parse
from .lib.timing import timed

# Of the 60 block norms of the model: every fourth, every second, all.
SITES = {15: "*.layers.*[02468].input_layernorm", 30: "*.layers.*.input_layernorm", 60: "norms"}
GROWTH_COLUMNS = (
    Column("prompts"),
    Column("sites", format="d"),
    Column("median time", "s", ".2f"),
    Column("time per prompt", "ms", ".1f"),
    Column("time per site beyond a plain pass", "ms", ".1f"),
    Column("times as long as plain passes", format=".2f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_speed", description=__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="prompts per side (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts that run together (%(default)s)")
    parser.add_argument("--sites", type=int, choices=SITES, default=60, help="how many norms (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side (%(default)s)")
    parser.add_argument("--growth", type=int, nargs="*", default=[32, 64, 112], help="prompts per side, last table")
    args = parse(parser, arguments, quick={"repeats": 2})

    report = Report("fit_speed", "Speed of the fit", args)
    report.text(f"SmolLM2-135M, float32, {args.prompts} + {args.prompts} prompts in batches of {args.batch_size}.")
    model = load_model()
    prompts, warm_up = load_prompts(args.prompts), load_prompts(4)
    fit(model, *_sides(warm_up), sites="norms")
    measure_against_rerunning(
        report, model, *_sides(prompts), sites=SITES[args.sites], batch_size=args.batch_size, repeats=args.repeats
    )
    if args.growth:
        report.table("growth", "Growth with prompts and sites", GROWTH_COLUMNS, growth(model, args))
    return report.finish()


def growth(model: TransformersModel, args: argparse.Namespace) -> Generator[list[Cell], None, None]:
    """Time of a fit by number of prompts and of sites, compared with plain passes of the same prompts."""
    most = max(SITES)
    cases = [(count, most) for count in args.growth] + [(args.prompts, sites) for sites in SITES if sites != most]
    cases = sorted(dict.fromkeys(cases))
    fits: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    passes: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(args.repeats):
        for count, sites in cases:
            source, target = _sides(load_prompts(count))

            def run(source: Sequence[str] = source, target: Sequence[str] = target, sites: int = sites) -> ActMap:
                return fit(model, source, target, sites=SITES[sites], batch_size=args.batch_size)

            passes[count, sites].append(timed(lambda a=source, b=target: plain_pass(model, a, b, args.batch_size)))
            fits[count, sites].append(timed(run))
    for count, sites in cases:
        seconds, plain = median(fits[count, sites]), median(passes[count, sites])
        per_prompt, per_site = 1e3 * seconds / (2 * count), 1e3 * (seconds - plain) / sites
        yield [f"{count} + {count}", sites, seconds, per_prompt, per_site, seconds / plain]


def plain_pass(model: FitModel[str], source: Sequence[str], target: Sequence[str], batch_size: int) -> None:
    """Run all prompts through the model once."""
    with torch.no_grad():
        for batch in itertools.chain(*(model.batches(side, batch_size) for side in (source, target))):
            batch.run()


def _sides(prompts: PromptSet) -> tuple[Sequence[str], Sequence[str]]:
    return prompts.source, prompts.target


if __name__ == "__main__":
    raise SystemExit(main())
