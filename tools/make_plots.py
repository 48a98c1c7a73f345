"""Draws the plots of docs/evidence.md from the results of the benchmarks.

    python -m tools.make_plots

Each plot shows one column of a saved table: a point with its interval for each row. A plot records which values it was
drawn from, so that a test finds those that are out of date; drawing them needs matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import ROOT, Estimate, Result, Table, load_result

FOLDER = ROOT / "docs" / "evidence"
BLUE, GREY = "#2a6fbb", "#888888"
WIDTH, ROW_HEIGHT, MARGIN = 7.2, 0.24, 1.0  # inches


@dataclass(frozen=True)
class Plot:
    """A plot of one column of a table.

    Attributes:
        benchmark, table: where the values are.
        value: name of the column that is drawn, whose cells have an interval.
        labels: names of the columns that name a row.
        axis: what the values are, in words.
        references: names of columns of plain values that are drawn beside, as grey marks.
    """

    benchmark: str
    table: str
    value: str
    labels: Sequence[str]
    axis: str
    references: Sequence[str] = ()

    @property
    def path(self) -> Path:
        """The file it is drawn to."""
        return FOLDER / f"{self.benchmark}_{self.table}.png"

    def rows(self, result: Result) -> list[tuple[str, Estimate, list[float]]]:
        """Label, value and references of each row that has an interval."""
        table = result.tables[self.table]
        value, names = _place(table, self.value), [_place(table, name) for name in self.labels]
        beside = [_place(table, name) for name in self.references]
        return [
            (", ".join(table.columns[at].write(row[at]) for at in names), cell, [_plain(row[at]) for at in beside])
            for row in table.rows
            if isinstance(cell := row[value], Estimate)
        ]

    def digest(self, result: Result) -> str:
        """A hash of everything that is drawn."""
        drawn = [self.axis, list(self.references), self.rows(result)]
        return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


PLOTS = (
    Plot(
        "styles",
        "pairs",
        "strength 1",
        ("styles",),
        "judge's probability of the target style",
        ("unsteered", "prompted"),
    ),
    Plot(
        "digits",
        "pairs",
        "steered",
        ("sites", "digits"),
        "classifier's probability of the target digit",
        ("unsteered", "class swapped"),
    ),
    Plot(
        "toxicity", "ways", "classifier: change", ("steered by",), "change of the probability that a text is offensive"
    ),
)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m tools.make_plots", description=__doc__).parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    for plot in PLOTS:
        draw(plot, load_result(plot.benchmark))
        print(plot.path.relative_to(ROOT))
    return 0


def draw(plot: Plot, result: Result) -> None:
    """Draw one plot."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    rows = plot.rows(result)
    figure, axes = pyplot.subplots(figsize=(WIDTH, MARGIN + ROW_HEIGHT * len(rows)), layout="constrained")
    for at, (_, found, beside) in enumerate(rows):
        axes.plot([found.low, found.high], [at, at], color=BLUE, linewidth=1.5)
        axes.plot(found.value, at, "o", color=BLUE, markersize=5)
        for mark, number in zip("|x+", beside, strict=False):
            axes.plot(number, at, mark, color=GREY, markersize=8, markeredgewidth=1.5)
    for mark, name in zip("|x+", plot.references, strict=False):
        axes.plot([], [], mark, color=GREY, label=name)
    if plot.references:
        figure.legend(loc="outside upper center", ncols=len(plot.references), frameon=False)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(plot.axis)
    figure.savefig(plot.path, dpi=110, metadata={"Source": plot.digest(result)})
    pyplot.close(figure)


def _place(table: Table, name: str) -> int:
    return [column.name for column in table.columns].index(name)


def _plain(cell: Any) -> float:
    return float(cell.value if isinstance(cell, Estimate) else cell)


if __name__ == "__main__":
    raise SystemExit(main())
