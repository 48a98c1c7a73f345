"""Copies the results of benchmarks into the documents.

    python -m tools.make_tables           # write
    python -m tools.make_tables --check   # only list outdated documents; exit status 1 if there are any

In a document, a table is generated from ``benchmarks/results`` between two marks::

    <!-- table: fit_speed.growth -->
    <!-- end -->

``NAME.TABLE`` is a table of a result, ``NAME.TABLE: COLUMN | COLUMN`` some of its columns, ``NAME.targets`` its figures
with their targets, ``NAME.setup`` its date, machine and method; ``summary.*`` are tables of several results, defined in
`tools.summaries`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .results import ROOT, Result, load_result
from .summaries import SUMMARIES

DOCUMENTS = ("*.md", "benchmarks/*.md", "demo_model/*.md", "pretrained_maps/*.md", "docs/**/*.md", "web/docs/**/*.md")
MARK = re.compile(r"<!-- (?:table: (?P<name>[\w.]+)(?:: (?P<columns>.+?))?|(?P<end>end)) -->")


class TableError(Exception):
    """Unmatched marks or unknown table names; the message gives the document and the line."""


def documents(root: Path = ROOT) -> list[Path]:
    """The Markdown files that may hold tables."""
    return sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)})


@cache
def _result(name: str) -> Result:
    return load_result(name)


def table(name: str, columns: str | None = None) -> str:
    """The text between the marks of a table, with all columns or only some.

    Raises:
        KeyError, FileNotFoundError: there is no such table or column, or no such result.
    """
    benchmark, _, part = name.partition(".")
    if benchmark == "summary":
        return SUMMARIES[part](_result)
    result = _result(benchmark)
    if part == "targets":
        return result.targets().markdown()
    if part == "setup":
        return "\n\n".join((result.provenance(), *result.setup))
    found = result.tables[part]
    return (found.part(columns.split(" | ")) if columns else found).markdown()


def filled(text: str, where: str) -> str:
    """A document with its tables regenerated.

    Args:
        text: the document.
        where: its name, for messages.

    Raises:
        TableError: a table without an end, an end without a table, or an unknown name.
    """
    parts: list[str] = []
    opened: re.Match[str] | None = None
    at = 0
    for mark in MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        if bool(mark["end"]) != bool(opened):
            raise TableError(f"{where}, line {line}: {mark.group()} is out of place; write one end per table.")
        if opened is None:
            parts.append(text[at : mark.end()])
            opened = mark
        else:
            try:
                made = table(opened["name"], opened["columns"])
            except (KeyError, FileNotFoundError) as error:
                raise TableError(f"{where}, line {line}: there is no table {opened['name']!r} ({error}).") from error
            parts.append(f"\n\n{made}\n\n")
            opened = None
        at = mark.start() if opened is None else mark.end()
    if opened is not None:
        raise TableError(f"{where}: {opened.group()} has no <!-- end -->; add it below the table.")
    return "".join([*parts, text[at:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_tables", description="Update the tables of documents.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a document is out of date")
    args = parser.parse_args(arguments)
    changed = False
    try:
        for path in documents():
            text = path.read_text(encoding="utf-8")
            made = filled(text, str(path.relative_to(ROOT)))
            if made == text:
                continue
            changed = True
            print(f"{path.relative_to(ROOT)} {'is out of date' if args.check else 'was updated'}")
            if not args.check:
                path.write_text(made, encoding="utf-8")
    except TableError as error:
        print(error, file=sys.stderr)
        return 2
    return int(args.check and changed)


if __name__ == "__main__":
    raise SystemExit(main())
