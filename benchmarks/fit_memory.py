"""Whether a fit stays within the memory that it was given, and what streaming costs in accuracy."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from act_core import ActMap, fit

from .common import ROOT, Check, load_model, load_prompts, print_table, print_title, report, stop

MIB = 2**20
BUDGET = 256
SMALL_BUDGETS = [128, 112]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_memory", description=__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="prompts a side of the smaller fit (%(default)s)")
    parser.add_argument("--times", type=int, default=8, help="how many times as many the larger one has (%(default)s)")
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="MIB", help="of both fits (%(default)s)")
    parser.add_argument(
        "--small-budgets",
        type=int,
        nargs="*",
        default=SMALL_BUDGETS,
        metavar="MIB",
        help="budgets that force the smaller fit to stream (%(default)s)",
    )
    parser.add_argument("--sites", default="norms", help="preset or patterns (%(default)s)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(_measure(args.child, args)))
        return 0
    if not Path("/proc/self/clear_refs").exists():
        stop("The peak of the memory is read from /proc; run this benchmark on Linux.")

    print_title("Memory of the fit")
    print(
        f"SmolLM2-135M, float32, {args.sites}, batches of at most 32. Peak resident memory of a fresh process during "
        "the fit, less what it held before, after a tiny fit to warm up."
    )
    rows: list[tuple[object, ...]] = []
    checks: list[Check] = []
    cases = [(1, args.budget), (args.times, args.budget), *((1, small) for small in args.small_budgets)]
    for times, budget in cases:
        found = _in_subprocess(times, budget, args)
        used, free = ((found[key] - found["before"]) / MIB for key in ("peak", "free_peak"))
        prompts = f"{found['prompts']} + {found['prompts']}"
        seconds = (f"{found[key]:.1f}" for key in ("seconds", "free_seconds"))
        rows.append((prompts, budget, found["walk"], f"{used:.0f}", f"{free:.0f}", *seconds))
        checks.append(Check(f"peak of {prompts} prompts", f"{used:.0f} MiB", f"<= {budget} MiB", used <= budget))
    columns = ("prompts", "budget, MiB", "walk", "used, MiB", "without a budget, MiB", "s", "without a budget, s")
    print_table(columns, rows)
    if args.small_budgets:
        accuracy(args.prompts, args.sites, args.small_budgets)
    return report(checks)


def accuracy(count: int, sites: str, budgets: Sequence[int]) -> None:
    """How far the map of a streamed fit is from that of the exact walk."""
    model, prompts = load_model(), load_prompts(count)
    exact = fit(model, prompts.source, prompts.target, sites=sites)
    effects = torch.tensor([transport.effect or 0.0 for transport in exact.transports.values()])
    others: dict[str, ActMap] = {}
    for budget in budgets:
        streamed = fit(model, prompts.source, prompts.target, sites=sites, memory_budget=budget * MIB)
        if streamed.record.walk != "streamed":
            stop(f"{count} + {count} prompts fit into {budget} MiB; give smaller budgets with --small-budgets.")
        others[f"streamed, {budget} MiB"] = streamed
    for start, half in enumerate(("first", "second")):
        sides = (side[start::2] for side in (prompts.source, prompts.target))
        others[f"exact, {half} of every two prompts"] = fit(model, *sides, sites=sites)
    others["exact, simultaneous"] = fit(model, prompts.source, prompts.target, sites=sites, order="simultaneous")
    rows: list[tuple[object, ...]] = []
    for name, other in others.items():
        means, slopes = _distances(exact, other)
        rows.append((name, *(f"{v:.2f}" for v in (means.median(), means.max(), slopes.median(), slopes.max()))))
    print(
        f"\n### Distance from the exact map of {count} + {count} prompts\n\nOf each site, the median over channels: "
        "how far apart the transported means are, in deviations of the source, and how far the slopes. Median and "
        f"greatest over the sites. The exact map moves the mean by {effects.median():.2f} deviations (median). "
        "The last rows are yardsticks: what half of the prompts, and giving up the causal order, would change."
    )
    print_table(("map", "mean, median", "mean, greatest", "slope, median", "slope, greatest"), rows)


def _distances(exact: ActMap, streamed: ActMap) -> tuple[torch.Tensor, torch.Tensor]:
    means: list[torch.Tensor] = []
    slopes: list[torch.Tensor] = []
    for site, one in exact.transports.items():
        other, statistics = streamed.transports[site], one.statistics
        assert statistics is not None
        counts = statistics.source_std > 1e-4
        apart = (one.omega - other.omega) * statistics.source_mean + one.beta - other.beta
        means.append((apart / statistics.source_std)[counts].abs().median())
        slopes.append((one.omega - other.omega)[counts].abs().median())
    return torch.stack(means), torch.stack(slopes)


def _in_subprocess(times: int, budget: int, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fit_memory", "--child", str(times), "--sites", args.sites]
    command += ["--prompts", str(args.prompts), "--budget", str(budget)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        stop("A fit failed; what it said is above.")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(times: int, args: argparse.Namespace) -> dict[str, Any]:
    """In a fresh process: memory before and at the peak of a fit, within the budget and then without one."""
    model, prompts = load_model(), load_prompts(args.prompts)
    source, target = (multiplied(side, times) for side in (prompts.source, prompts.target))
    fit(model, source[:4], target[:4], sites=args.sites)
    before = _settled()
    start = time.perf_counter()
    act_map = fit(model, source, target, sites=args.sites, memory_budget=args.budget * MIB)
    seconds = time.perf_counter() - start
    peak = _peak()
    _settled()
    start = time.perf_counter()
    fit(model, source, target, sites=args.sites)
    free_seconds = time.perf_counter() - start
    free_peak = _peak()
    return {
        "prompts": len(source),
        "before": before,
        "peak": peak,
        "free_peak": free_peak,
        "seconds": seconds,
        "free_seconds": free_seconds,
        "walk": act_map.record.walk,
    }


def multiplied(prompts: Sequence[str], times: int) -> list[str]:
    """`times` as many distinct prompts of like length: the first half of each with the second half of others."""
    words = [prompt.split() for prompt in prompts]
    count = len(words)
    made = [
        " ".join(own[: len(own) // 2] + other[len(other) // 2 :])
        for shift in range(times)
        for own, other in ((words[i], words[(i + shift) % count]) for i in range(count))
    ]
    if len(set(made)) < len(made):
        stop(f"There are not {times} times {count} different prompts; ask for fewer.")
    return made


def _settled() -> int:
    """Give back to the system what is free, forget the peak; bytes resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
