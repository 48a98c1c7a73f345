"""Whether a fit stays within its memory budget, what parking costs in time, and streaming in accuracy."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from act_core import ActMap, fit
from act_core.fitting import room
from tools.results import Cell, Column

from .lib.models import ROOT, load_model, load_prompts, stop
from .lib.report import Report, at_most, parse

MIB = 2**20
BUDGET = 256
SMALL_BUDGETS = [112]
MEMORY_COLUMNS = (
    Column("prompts"),
    Column("budget", "MiB", "d"),
    Column("walk"),
    Column("used", "MiB", ".0f"),
    Column("used without a budget", "MiB", ".0f"),
    Column("time, as a multiple", format=".2f"),
    Column("same map, bit for bit"),
)
DISTANCE_COLUMNS = (
    Column("map"),
    Column("mean, median site", format=".2f"),
    Column("mean, worst site", format=".2f"),
    Column("slope, median site", format=".2f"),
    Column("slope, worst site", format=".2f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_memory", description=__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="prompts per side of the smaller fit (%(default)s)")
    parser.add_argument("--times", type=int, default=8, help="size of the larger fit, as a multiple (%(default)s)")
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="MIB", help="budget of both fits (%(default)s)")
    parser.add_argument(
        "--small-budgets",
        type=int,
        nargs="*",
        default=SMALL_BUDGETS,
        metavar="MIB",
        help="budgets that the waiting prompts of the smaller fit do not fit into (%(default)s)",
    )
    parser.add_argument("--sites", default="norms", help="preset or patterns (%(default)s)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parse(parser, arguments)
    if args.child:
        print(json.dumps(_measure(args.child, args)))
        return 0
    if not Path("/proc/self/clear_refs").exists():
        stop("The peak memory is read from /proc; run this benchmark on Linux.")

    report = Report("fit_memory", "Memory of the fit", args)
    report.text(
        f"SmolLM2-135M, float32, {args.sites}, batches of at most 32. Used: peak resident memory of a fresh process "
        "during the fit, less what it holds before, after a tiny fit to warm up. Time and map are compared with those "
        "of a fit without a budget in the same process. Time is processor time, system calls included, since the "
        "machine was shared."
    )
    report.table("memory", "Memory", MEMORY_COLUMNS, memory(report, args))
    if args.small_budgets:
        accuracy(report, args)
    return report.finish()


def memory(report: Report, args: argparse.Namespace) -> Generator[list[Cell], None, None]:
    """One row per fit, each in a fresh process."""
    cases = [(1, args.budget), (args.times, args.budget), *((1, small) for small in args.small_budgets)]
    beyond, ratios, different = 0.0, list[float](), 0
    for times, budget in cases:
        found = _in_subprocess(times, budget, args)
        used, free = ((found[key] - found["before"]) / MIB for key in ("peak", "free_peak"))
        prompts, ratio = f"{found['prompts']} + {found['prompts']}", found["seconds"] / found["free_seconds"]
        yield [prompts, budget, found["walk"], used, free, ratio, "yes" if found["same"] else "no"]
        beyond, different = max(beyond, used - budget), different + (not found["same"])
        ratios.append(ratio)
    report.figure("beyond", Column("growth beyond the budget", "MiB", ".0f"), beyond, at_most(0, unit="MiB"))
    report.figure("ratio", Column("longest time, as a multiple", format=".2f"), max(ratios), at_most(2))
    report.figure(
        "different", Column("maps that differ from those without a budget", format="d"), different, at_most(0)
    )


def accuracy(report: Report, args: argparse.Namespace) -> None:
    """How far the maps of fits that have to stream are from the map of the exact walk."""
    # As on a machine whose main memory is full.
    room.available_memory = lambda: 0
    model, prompts = load_model(), load_prompts(args.prompts)
    exact = fit(model, prompts.source, prompts.target, sites=args.sites)
    effects = torch.tensor([transport.effect or 0.0 for transport in exact.transports.values()])
    others: dict[str, ActMap] = {}
    for budget in args.small_budgets:
        streamed = fit(model, prompts.source, prompts.target, sites=args.sites, memory_budget=budget * MIB)
        if streamed.record.walk != "streamed":
            stop(f"{args.prompts} + {args.prompts} prompts fit into {budget} MiB; give smaller --small-budgets.")
        others[f"streamed, {budget} MiB"] = streamed
    for start, half in enumerate(("first", "second")):
        source, target = (side[start::2] for side in (prompts.source, prompts.target))
        others[f"exact, the {half} of every two prompts"] = fit(model, source, target, sites=args.sites)
    simultaneous = fit(model, prompts.source, prompts.target, sites=args.sites, order="simultaneous")
    others["exact, simultaneous"] = simultaneous
    report.text(
        "Streamed: fits that can park nothing, as if main memory were full. "
        f"Distance from the exact map of {args.prompts} + {args.prompts} prompts, at each site the median over "
        "channels: of the transported means, in standard deviations of the source, and of the slopes. The exact map "
        f"shifts the mean by {effects.median():.2f} deviations (median site). For comparison: maps of half of the "
        "prompts, and a simultaneous one."
    )
    rows: list[list[Cell]] = []
    for name, other in others.items():
        means, slopes = _distances(exact, other)
        rows.append([name, *(float(value) for value in (means.median(), means.max(), slopes.median(), slopes.max()))])
    report.table("distance", "Distance from the exact map", DISTANCE_COLUMNS, rows)


def _distances(exact: ActMap, other: ActMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of the transported means and of the slopes, by site."""
    means: list[torch.Tensor] = []
    slopes: list[torch.Tensor] = []
    for site, one in exact.transports.items():
        two, statistics = other.transports[site], one.statistics
        assert statistics is not None
        varies = statistics.source_std > 1e-4
        apart = (one.omega - two.omega) * statistics.source_mean + one.beta - two.beta
        means.append((apart / statistics.source_std)[varies].abs().median())
        slopes.append((one.omega - two.omega)[varies].abs().median())
    return torch.stack(means), torch.stack(slopes)


def _in_subprocess(times: int, budget: int, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fit_memory", "--child", str(times), "--sites", args.sites]
    command += ["--prompts", str(args.prompts), "--budget", str(budget)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        stop("A fit failed; its error is above.")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(times: int, args: argparse.Namespace) -> dict[str, Any]:
    """Memory before a fit and at its peak, within the budget and then without one; in a fresh process."""
    model, prompts = load_model(), load_prompts(args.prompts)
    source, target = (multiplied(side, times) for side in (prompts.source, prompts.target))
    fit(model, source[:4], target[:4], sites=args.sites)
    before = _settled()
    budget = args.budget * MIB
    started = time.process_time()
    fitted = [fit(model, source, target, sites=args.sites, memory_budget=budget)]
    seconds = time.process_time() - started
    peak = _status("VmHWM")
    _settled()
    started = time.process_time()
    fitted.append(fit(model, source, target, sites=args.sites))
    free_seconds = time.process_time() - started
    return {
        "prompts": len(source),
        "before": before,
        "peak": peak,
        "free_peak": _status("VmHWM"),
        "seconds": seconds,
        "free_seconds": free_seconds,
        "walk": fitted[0].record.walk,
        "same": max(fitted[0].difference(fitted[1]).values()) == 0,
    }


def multiplied(prompts: Sequence[str], times: int) -> list[str]:
    """`times` as many distinct prompts of similar length, which combine halves of different prompts."""
    words = [prompt.split() for prompt in prompts]
    count = len(words)
    made = [
        " ".join(one[: len(one) // 2] + other[len(other) // 2 :])
        for shift in range(times)
        for one, other in ((words[i], words[(i + shift) % count]) for i in range(count))
    ]
    if len(set(made)) < len(made):
        stop(f"There are not {times} times {count} different prompts; ask for fewer.")
    return made


def _settled() -> int:
    """Return free memory to the system, reset the peak, and return the resident bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
