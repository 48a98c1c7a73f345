"""Compares a fit with the same fit by one pass per site."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from act_core import ActMap, fit
from act_core.fitting import FitModel
from act_core.fitting.samples import Sample
from tools.results import Cell, Column

from .report import Report, at_least, at_most
from .rerun import fit_by_rerunning
from .timing import alternate, ratio

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
) -> float:
    """Report times and differences of one walk and of one pass per site; return the seconds of the walk."""
    maps: dict[str, ActMap] = {}

    def lockstep() -> None:
        maps["lockstep"] = fit(model, source, target, sites=sites, batch_size=batch_size)

    def rerunning() -> None:
        maps["one pass per site"] = fit_by_rerunning(model, source, target, sites, batch_size=batch_size)

    times = alternate({"lockstep": lockstep, "one pass per site": rerunning}, repeats)
    count = len(maps["lockstep"])
    report_speed_up(report, times, count, max(maps["lockstep"].difference(maps["one pass per site"]).values()))
    return median(times["lockstep"])


def report_speed_up(report: Report, times: dict[str, list[float]], sites: int, difference: float) -> None:
    """Report the table of times and the two figures of a comparison.

    Args:
        report: receives them.
        times: seconds of ``lockstep`` and of ``one pass per site``.
        sites: number of sites of the map.
        difference: the largest relative difference of a coefficient.
    """
    rows: list[list[Cell]] = [[name, median(own), len(own)] for name, own in times.items()]
    report.table("rerunning", f"Lockstep against one pass per site ({sites} sites)", FIT_COLUMNS, rows)
    goal = at_least(SPEED_UP_PER_SITE * sites, why=f"{SPEED_UP_PER_SITE:g} x sites")
    report.figure("speed_up", SPEED_UP, ratio(times["one pass per site"], times["lockstep"]), goal)
    report.figure("difference", DIFFERENCE, difference, at_most(1e-6))
