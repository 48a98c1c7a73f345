"""Results of benchmarks, and the tables of the documents that are made from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools import make_tables
from tools.make_tables import TableError, documents, filled
from tools.results import RESULTS, ROOT, Column, Estimate, Figure, Result, Table, load_result, rounded
from tools.summaries import SUMMARIES

SAVED = sorted(path.stem for path in RESULTS.glob("*.json"))
# Second files of a command that ran on another model.
OF_OTHER_MODELS = {"toxicity_gemma3"}
COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.fixture
def result() -> Result:
    columns = [Column("fit"), Column("time", "s", ".2f", "range"), Column("runs", format="d")]
    table = Table(columns, [["lockstep", Estimate(1.5, 1.25, 2), 3], ["a | b", Estimate(10, 9, 11), 3]])
    figures = {
        "speed_up": Figure(Column("speed-up", format=".1f"), 6.5, ">= 24", False),
        "error": Figure(Column("error", "deviations", ".1e"), 2e-6, "<= 1e-3", True),
        "plain": Figure(Column("share", format=".0%", spread="interval"), Estimate(0.5, 0.4, 0.6)),
    }
    machine = {"cpu": "Fast CPU", "cores": 2, "threads": 2, "python": "3.11.7", "libraries": {"torch": "2.13.0"}}
    return Result(
        "toy", "A toy", "2026-01-02", "python -m benchmarks.toy", "abc1234", machine, ["One."], {"t": table}, figures
    )


@pytest.fixture
def saved(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(make_tables, "_result", lambda name: load_result(name, tmp_path))
    return result.save(tmp_path)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_hold_what_make_tables_writes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert filled(text, path.name) == text, "run 'python -m tools.make_tables'"


def test_documents_include_every_file_with_a_mark() -> None:
    skipped = {".venv", "node_modules", ".git"}
    pages = [path for path in ROOT.rglob("*.md") if not skipped & set(path.relative_to(ROOT).parts)]
    found = {path for path in pages if "<!-- table:" in path.read_text("utf-8")}
    assert found
    assert found <= set(documents())


def test_results_exist_for_every_command() -> None:
    assert set(SAVED) - OF_OTHER_MODELS == set(COMMANDS)
    assert set(SAVED) >= OF_OTHER_MODELS


@pytest.mark.parametrize("name", SAVED)
def test_results_survive_loading_and_saving(name: str, tmp_path: Path) -> None:
    loaded = load_result(name)
    assert loaded.benchmark == name
    assert loaded.save(tmp_path).read_text("utf-8") == (RESULTS / f"{name}.json").read_text("utf-8")


@pytest.mark.parametrize("name", SAVED)
def test_results_name_the_machine_and_no_folder(name: str) -> None:
    loaded = load_result(name)
    assert loaded.machine["cpu"]
    assert loaded.machine["threads"]
    assert loaded.machine["libraries"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", loaded.date)
    assert loaded.command.startswith("python -m benchmarks.")
    assert loaded.tables
    text = json.dumps([loaded.command, loaded.machine, loaded.setup])
    assert not re.search(r"/(?:home|root|tmp|work|Users|usr|opt|mnt)\b", text)


@pytest.mark.parametrize("name", SAVED)
def test_results_are_all_shown_in_the_page_of_the_benchmarks(name: str) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for table in load_result(name).tables:
        assert f"<!-- table: {name}.{table} -->" in page


def test_limits_list_every_target_that_was_missed() -> None:
    rows = SUMMARIES["missed"](load_result).splitlines()[2:]
    figures = [(name, figure) for name in SAVED for figure in load_result(name).figures.values() if figure.target]
    missed = [(name, figure) for name, figure in figures if not figure.met]
    assert 10 < len(missed) < len(figures)
    assert len(rows) == len(missed)
    for row, (name, figure) in zip(rows, missed, strict=True):
        assert row.split(" | ") == [f"| `{name}`", figure.column.name, str(figure), f"{figure.target} |"]
    page = (ROOT / "docs" / "guides" / "limits.md").read_text("utf-8")
    assert "<!-- table: summary.missed -->" in page


def test_results_load_as_they_were_saved(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path)
    assert load_result("toy", tmp_path) == result


def test_rounded_keeps_six_digits_of_floats_and_everything_of_others() -> None:
    assert rounded(1.23456789) == 1.23457
    assert rounded(Estimate(1.23456789, 0.000123456789, 3)) == Estimate(1.23457, 0.000123457, 3)
    assert rounded(12345678) == 12345678
    assert rounded("1.23456789") == "1.23456789"


def test_markdown_of_a_table_aligns_figures_and_keeps_bars_out_of_cells(result: Result) -> None:
    assert result.tables["t"].markdown().splitlines() == [
        "| fit | time (s) | runs |",
        "|---|---:|---:|",
        "| lockstep | 1.50 (1.25 to 2.00) | 3 |",
        "| a / b | 10.00 (9.00 to 11.00) | 3 |",
    ]


def test_targets_lists_figures_with_a_target(result: Result) -> None:
    assert [list(row) for row in result.targets().rows] == [
        ["speed-up", "6.5", ">= 24", "**not met**"],
        ["error", "2.0e-6 deviations", "<= 1e-3", "met"],
    ]
    assert str(result.figures["plain"]) == "50% [40%, 60%]"


def test_provenance_names_command_commit_and_machine(result: Result) -> None:
    assert result.provenance() == (
        "Measured on 2026-01-02 at commit abc1234 with `python -m benchmarks.toy`. "
        "Fast CPU, 2 cores, 2 threads; Python 3.11.7, torch 2.13.0."
    )
    result.transcribed = True
    assert result.provenance().endswith("The figures were copied from the printed report of that run.")


@pytest.mark.usefixtures("saved")
def test_filled_replaces_what_stands_between_the_marks_and_nothing_else(result: Result) -> None:
    text = "before\n<!-- table: toy.t -->old<!-- end -->\nbetween <!-- table: toy.targets -->\n<!-- end --> after\n"
    made = filled(text, "page.md")
    table, targets = result.tables["t"].markdown(), result.targets().markdown()
    assert made == (
        f"before\n<!-- table: toy.t -->\n\n{table}\n\n<!-- end -->\n"
        f"between <!-- table: toy.targets -->\n\n{targets}\n\n<!-- end --> after\n"
    )
    assert filled(made, "page.md") == made


@pytest.mark.usefixtures("saved")
def test_mark_selects_columns_of_a_table(result: Result) -> None:
    first, _, *others = result.tables["t"].columns
    names = [column.name for column in (*others[::-1], first)]
    made = filled(f"<!-- table: toy.t: {' | '.join(names)} --><!-- end -->", "page.md")
    assert result.tables["t"].part(names).markdown() in made
    assert [cell.strip() for cell in made.splitlines()[2].strip("|").split("|")] == [
        column.heading for column in (*others[::-1], first)
    ]


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: toy.t: none -->\n<!-- end -->", "page.md, line 2: there is no table 'toy.t' ('none')"),
        ("\n<!-- table: toy.t -->", "page.md: <!-- table: toy.t --> has no <!-- end -->"),
        ("\n<!-- end -->", "page.md, line 2: <!-- end --> is out of place"),
        ("<!-- table: toy.t -->\n<!-- table: toy.t -->", "page.md, line 2: <!-- table: toy.t --> is out of place"),
        ("<!-- table: toy.u -->\n<!-- end -->", "page.md, line 2: there is no table 'toy.u'"),
        ("<!-- table: none.t -->\n<!-- end -->", "page.md, line 2: there is no table 'none.t'"),
        ("<!-- table: summary.none -->\n<!-- end -->", "page.md, line 2: there is no table 'summary.none'"),
    ],
)
def test_filled_refuses_marks_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(TableError, match=re.escape(message)):
        filled(text, "page.md")


def test_main_updates_documents_and_check_only_names_them(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = saved.parent / "page.md"
    page.write_text("<!-- table: toy.t -->\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(make_tables, "ROOT", saved.parent)
    monkeypatch.setattr(make_tables, "documents", lambda: [page])
    assert make_tables.main(["--check"]) == 1
    assert capsys.readouterr().out == "page.md is out of date\n"
    assert make_tables.main([]) == 0
    assert capsys.readouterr().out == "page.md was updated\n"
    assert "lockstep" in page.read_text("utf-8")
    assert make_tables.main(["--check"]) == 0
    page.write_text("<!-- table: toy.u -->\n<!-- end -->\n", encoding="utf-8")
    assert make_tables.main([]) == 2
    assert "there is no table 'toy.u'" in capsys.readouterr().err
