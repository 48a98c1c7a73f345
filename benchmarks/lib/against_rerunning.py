"""Compares a fit with the same fit by one pass per site."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from act_core import ActMap, fit
from act_core.fitting import FitModel
from act_core.fitting.samples import Sample
from tools.results import Cell, Column

from .report import Report, at_least, at_most
from .rerun import fit_by_rerunning
from .timing import Clock, alternate, ratio

# The run for a site ends there, on average half way, so the speed-up is at most half the number of sites.
SPEED_UP_PER_SITE = 0.4
FIT_COLUMNS = (Column("fit"), Column("median time", "s", ".2f"), Column("runs", format="d"))
SPEED_UP = Column("times as fast as one pass per site", format=".1f", spread="range")
DIFFERENCE = Column("largest relative difference of a coefficient", format=".1e")


def measure_against_rerunning(
    report: Report,
    model: FitModel[Sample],
    source: Sequence[Sample],
    target: Sequence[Sample],
    *,
    sites: str,
    batch_size: int,
    repeats: int,
    goal: float | None = None,
    clock: Clock = time.perf_counter,
) -> float:
    """Report times and differences of one walk and of one pass per site; return the seconds of the walk.

    The target is `goal` times as fast, by default 0.4 times for each site.
    """
    maps: dict[str, ActMap] = {}

    def lockstep() -> None:
        maps["lockstep"] = fit(model, source, target, sites=sites, batch_size=batch_size)

    def rerunning() -> None:
        maps["one pass per site"] = fit_by_rerunning(model, source, target, sites, batch_size=batch_size)

    times = alternate({"lockstep": lockstep, "one pass per site": rerunning}, repeats, clock)
    count = len(maps["lockstep"])
    report_speed_up(report, times, count, max(maps["lockstep"].difference(maps["one pass per site"]).values()), goal)
    return median(times["lockstep"])


def report_speed_up(
    report: Report, times: dict[str, list[float]], sites: int, difference: float, goal: float | None = None
) -> None:
    """Report the table of times and the two figures of a comparison.

    Args:
        report: receives them.
        times: seconds of ``lockstep`` and of ``one pass per site``.
        sites: number of sites of the map.
        difference: the largest relative difference of a coefficient.
        goal: the target of the speed-up; None for one by the number of sites.
    """
    rows: list[list[Cell]] = [[name, median(own), len(own)] for name, own in times.items()]
    report.table("rerunning", f"Lockstep against one pass per site ({sites} sites)", FIT_COLUMNS, rows)
    by_sites = at_least(SPEED_UP_PER_SITE * sites, why=f"{SPEED_UP_PER_SITE:g} x sites")
    target = by_sites if goal is None else at_least(goal, why=f"{sites / 2:g} is the bound")
    report.figure("speed_up", SPEED_UP, ratio(times["one pass per site"], times["lockstep"]), target)
    report.figure("difference", DIFFERENCE, difference, at_most(1e-6))
