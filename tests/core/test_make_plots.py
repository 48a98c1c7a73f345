"""The plots of docs/evidence.md, drawn from the results of the benchmarks."""

from __future__ import annotations

import re
import subprocess

import pytest
from PIL import Image

from tools import make_evidence
from tools.make_evidence import benchmarks
from tools.make_plots import FOLDER, PLOTS, Plot
from tools.results import ROOT, Column, Estimate, Result, Table, load_result

PAGE = ROOT / "docs" / "evidence.md"


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.path.stem)
def test_plot_shows_the_saved_results(plot: Plot) -> None:
    with Image.open(plot.path) as picture:
        assert picture.info["Source"] == plot.digest(load_result(plot.benchmark)), "run 'python -m tools.make_plots'"


def test_page_shows_every_plot_with_a_description() -> None:
    shown = re.findall(r"!\[([^\]]{20,})\]\(evidence/(\w+\.png)\)", PAGE.read_text("utf-8"))
    assert sorted(name for _, name in shown) == sorted(plot.path.name for plot in PLOTS)
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(plot.path.name for plot in PLOTS)


def test_evidence_runs_every_benchmark_of_the_page_as_it_was_run() -> None:
    names = benchmarks(PAGE.read_text("utf-8"))
    assert {plot.benchmark for plot in PLOTS} <= set(names)
    for name in names:
        python, flag, module, *_ = load_result(name).command.split()
        assert (python, flag) == ("python", "-m")
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_evidence_stops_with_the_benchmark_that_could_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter([0, 1, 2])  # met, not met, something is missing
    ran: list[str] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command[2])
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(make_evidence.subprocess, "run", run)
    assert make_evidence.main() == 2
    expected = benchmarks(PAGE.read_text("utf-8"))[:3]
    assert len(ran) == 3
    assert f"{expected[2]} did not end" in capsys.readouterr().err


def test_rows_without_an_interval_are_left_out() -> None:
    columns = [Column("map"), Column("share", format=".2f", spread="interval"), Column("before", format=".2f")]
    table = Table(columns, [["a", Estimate(0.5, 0.4, 0.6), 0.1], ["b", 0.2, 0.1]])
    result = Result("toy", "A toy", "2026-01-02", "", "", {}, [], {"t": table}, {})
    plot = Plot("toy", "t", "share", ("map",), "share", ("before",))
    assert plot.rows(result) == [("a", Estimate(0.5, 0.4, 0.6), [0.1])]


def test_digest_changes_with_what_is_drawn() -> None:
    def digest(value: float, axis: str) -> str:
        table = Table([Column("map"), Column("share", format=".2f")], [["a", Estimate(value, 0.4, 0.6)]])
        result = Result("toy", "A toy", "2026-01-02", "", "", {}, [], {"t": table}, {})
        return Plot("toy", "t", "share", ("map",), axis).digest(result)

    assert digest(0.5, "share") == digest(0.5, "share")
    assert len({digest(0.5, "share"), digest(0.6, "share"), digest(0.5, "other")}) == 3
