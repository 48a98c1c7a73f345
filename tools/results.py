"""Results of benchmarks: saved as JSON in ``benchmarks/results``, and written as Markdown.

A file holds one `Result`: when, how and on what machine it was measured, tables of cells, and single figures, each with
its target if one was stated. The benchmarks write these files, and `tools.make_tables` copies them into the documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

DIGITS = 6

Spread = Literal["", "interval", "range", "middle half"]


class Estimate(NamedTuple):
    """A value with a lower and an upper bound: a confidence interval, the range of all runs, or their middle half."""

    value: float
    low: float
    high: float


# The types of a table cell.
Cell = str | int | float | Estimate


def short(number: float, form: str) -> str:
    """A number as `format` writes it, with ``1e-6`` in place of ``1e-06``.

    Example:
        >>> short(0.000002, ".1e")
        '2.0e-6'
    """
    return re.sub(r"e([+-])0(?=\d$)", r"e\1", format(number, form))


@dataclass(frozen=True)
class Column:
    """A column of a table, or how one figure is written.

    Attributes:
        name: heading.
        unit: such as ``s`` or ``MiB``; empty for shares, ratios and words.
        format: format specification of the numbers.
        spread: the bounds of an `Estimate`. ``interval``: 95% confidence; ``range``: minimum and maximum of all runs;
            ``middle half``: quartiles of the runs.
    """

    name: str
    unit: str = ""
    format: str = ""
    spread: Spread = ""

    @property
    def heading(self) -> str:
        """Its name, with the unit.

        Example:
            >>> Column("time", "s").heading
            'time (s)'
        """
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def write(self, cell: Cell) -> str:
        """A cell as text, without the unit.

        Example:
            >>> Column("share", format=".0%", spread="interval").write(Estimate(0.5, 0.4, 0.6))
            '50% [40%, 60%]'
        """
        if isinstance(cell, str):
            return cell.replace("|", "/")
        if not isinstance(cell, Estimate):
            return short(cell, self.format)
        value, low, high = (short(number, self.format) for number in cell)
        return f"{value} [{low}, {high}]" if self.spread == "interval" else f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the first column is text."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def part(self, names: Sequence[str]) -> Table:
        """The same rows under some of the columns.

        Raises:
            KeyError: there is no column of a name.
        """
        places = {column.name: place for place, column in enumerate(self.columns)}
        chosen = [places[name] for name in names]
        return Table([self.columns[at] for at in chosen], [[row[at] for at in chosen] for row in self.rows])

    def markdown(self) -> str:
        """The table in Markdown, without a line break at the end."""
        return "\n".join((*head(self.columns), *(line(self.columns, row) for row in self.rows)))


def head(columns: Sequence[Column]) -> tuple[str, str]:
    """The first two lines of a Markdown table; numbers are right-aligned, text is left-aligned."""
    marks = ["---:" if column.format else "---" for column in columns]
    return "| " + " | ".join(column.heading for column in columns) + " |", f"|{'|'.join(marks)}|"


def line(columns: Sequence[Column], row: Sequence[Cell]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(column.write(cell) for column, cell in zip(columns, row, strict=True)) + " |"


@dataclass(frozen=True)
class Figure:
    """A single figure.

    Attributes:
        column: name, unit and format.
        value: the number, with or without bounds.
        target: the target in words; empty if there is none.
        met: whether the target is met.
    """

    column: Column
    value: Cell
    target: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        return f"{self.column.write(self.value)} {self.column.unit}".rstrip()

    @property
    def number(self) -> float:
        """The value without its bounds."""
        return float(self.value.value if isinstance(self.value, Estimate) else self.value)


TARGET_COLUMNS = (Column("figure"), Column("measured"), Column("target"), Column("result"))


@dataclass
class Result:
    """The measurements of one benchmark run.

    Attributes:
        benchmark: the command, and the name of the file.
        title: heading.
        date: of the run, ISO 8601.
        command: the command that was run, with file names for paths.
        commit: abbreviated hash of the code that was measured; empty if unknown.
        machine: ``cpu``, ``cores``, ``threads``, ``instruction_set``, ``python``, ``libraries`` and ``environment``.
        setup: sentences on what was measured.
        tables, figures: by name.
        transcribed: whether the figures were copied from the printed report of the run.
    """

    benchmark: str
    title: str
    date: str
    command: str
    commit: str
    machine: Mapping[str, Any]
    setup: list[str] = field(default_factory=list[str])
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    figures: dict[str, Figure] = field(default_factory=dict[str, Figure])
    transcribed: bool = False

    def provenance(self) -> str:
        """A paragraph about date, command and machine."""
        code = f" at commit {self.commit}" if self.commit else ""
        copied = " The figures were copied from the printed report of that run." if self.transcribed else ""
        return f"Measured on {self.date}{code} with `{self.command}`. {describe(self.machine)}.{copied}"

    def targets(self) -> Table:
        """The figures that have a target."""
        rows = [
            (figure.column.name, str(figure), figure.target, "met" if figure.met else "**not met**")
            for figure in self.figures.values()
            if figure.target
        ]
        return Table(TARGET_COLUMNS, rows)

    def save(self, folder: Path = RESULTS) -> Path:
        """Write the result to its file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.benchmark}.json"
        path.write_text(_layout(_plain(self)) + "\n", encoding="utf-8")
        return path


def describe(machine: Mapping[str, Any]) -> str:
    """A machine in one line."""
    libraries = [f"{name} {version}" for name, version in machine["libraries"].items()]
    environment = [f"{name}={value}" for name, value in machine.get("environment", {}).items()]
    cores = [f"{machine['cores']} cores"] if machine.get("cores") else []
    kernels = [machine["instruction_set"]] if machine.get("instruction_set") else []
    hardware = [machine["cpu"], *cores, f"{machine['threads']} threads", *kernels]
    python = [f"Python {machine['python']}"] if machine.get("python") else []
    return f"{', '.join(hardware)}; {', '.join([*python, *libraries, *environment])}"


def load_result(name: str, folder: Path = RESULTS) -> Result:
    """The result of a benchmark.

    Raises:
        FileNotFoundError: it has never been saved.
    """
    plain: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tables = {
        key: Table([Column(**column) for column in table["columns"]], [_cells(row) for row in table["rows"]])
        for key, table in plain.pop("tables").items()
    }
    figures: dict[str, Figure] = {}
    for key, entry in plain.pop("figures").items():
        (value,) = _cells([entry.pop("value")])
        target, met = entry.pop("target", ""), entry.pop("met", None)
        figures[key] = Figure(Column(**entry), value, target, met)
    return Result(**plain, tables=tables, figures=figures)


def rounded(cell: Cell) -> Cell:
    """A cell with six significant digits, as it is saved."""
    if isinstance(cell, Estimate):
        return Estimate(*(float(f"{number:.{DIGITS}g}") for number in cell))
    return float(f"{cell:.{DIGITS}g}") if isinstance(cell, float) else cell


def _cells(plain: Iterable[Any]) -> list[Cell]:
    return [Estimate(**cell) if isinstance(cell, dict) else cast("Cell", cell) for cell in plain]


def _plain(result: Result) -> dict[str, Any]:
    def column(value: Column) -> dict[str, str]:
        return {key: text for key, text in vars(value).items() if text}

    def cell(value: Cell) -> Any:
        value = rounded(value)
        return value._asdict() if isinstance(value, Estimate) else value

    tables = {
        name: {
            "columns": [column(own) for own in table.columns],
            "rows": [[cell(value) for value in row] for row in table.rows],
        }
        for name, table in result.tables.items()
    }
    figures = {
        name: {
            **column(figure.column),
            "value": cell(figure.value),
            **({"target": figure.target, "met": figure.met} if figure.target else {}),
        }
        for name, figure in result.figures.items()
    }
    plain = {**vars(result), "tables": tables, "figures": figures}
    return plain if result.transcribed else {key: value for key, value in plain.items() if key != "transcribed"}


def _layout(value: Any, depth: int = 0) -> str:
    """JSON with a line for each row and each column of a table, so that diffs between runs are readable."""
    flat = json.dumps(value, ensure_ascii=False)
    is_leaf = not isinstance(value, (dict, list)) or (len(flat) <= 160 and depth > 2)
    is_row = isinstance(value, list) and not any(isinstance(part, list) for part in cast("list[Any]", value))
    if is_leaf or (is_row and depth > 3):
        return flat
    inner, outer = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value).items()
        parts = [f"{inner}{json.dumps(key)}: {_layout(part, depth + 1)}" for key, part in entries]
        return "{\n" + ",\n".join(parts) + f"\n{outer}}}" if parts else "{}"
    parts = [inner + _layout(part, depth + 1) for part in cast("list[Any]", value)]
    return "[\n" + ",\n".join(parts) + f"\n{outer}]" if parts else "[]"
