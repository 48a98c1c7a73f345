"""The pages agree with the code: named tests exist, and keys and limits are those of the reader."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from act_core.mapfile import format as file_format
from act_core.records import CARD_TEXTS, Evidence, Fingerprint, FitRecord

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "docs" / "security.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FORMAT = (ROOT / "docs" / "map-format.md").read_text("utf-8")
HEADER: dict[str, dict[str, str]] = json.loads((ROOT / "examples" / "read_map" / "map_header.json").read_text("utf-8"))


def test_security_page_names_tests_that_exist() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
    named = re.findall(r"`(test_\w+)`", SECURITY)
    assert len(named) > 20
    assert [name for name in named if name not in defined] == []


def test_every_promise_names_a_test() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| ") and "held by" not in line]
    assert len(rows) > 10
    assert [row for row in rows if "`test_" not in row.split("|")[2]] == []


def test_contributing_page_names_test_files_that_exist() -> None:
    named = re.findall(r"`(test_\w+\*?)(?:\.py)?`", CONTRIBUTING)
    assert len(named) > 20
    assert [name for name in named if not [*(ROOT / "tests").rglob(f"{name}.py")]] == []


def test_header_table_lists_what_the_reader_checks() -> None:
    records = {"record": FitRecord, "base": Fingerprint, "evidence": Evidence}
    for name, kind in records.items():
        assert {key.rstrip("!") for key in HEADER[name]} == {field.name for field in fields(kind)}
    for name, declared in get_type_hints(FitRecord).items():
        if get_origin(declared) is Literal:
            assert tuple(HEADER["record"][name].split("|")) == get_args(declared)
    keys = {value for name, value in vars(file_format).items() if name.endswith("_KEY")} - {file_format.THUMBNAIL_KEY}
    keys |= {f"modelspec.{name}" for name in CARD_TEXTS}
    assert {key.rstrip("!") for key in HEADER["metadata"]} == keys


def test_format_page_names_every_key() -> None:
    for table in HEADER.values():
        for key in table:
            name = key.rstrip("!")
            assert f"`{name}`" in FORMAT or f"`.{name.removeprefix('modelspec.')}`" in FORMAT, name
    for part in (*file_format.BOUNDS, *file_format.STATISTICS, file_format.GATE, file_format.PROJECTION):
        assert f"`{part}`" in FORMAT
    assert str(file_format.MAX_CHANNELS) in FORMAT
    assert f"1 to {file_format.MAX_NAME} characters" in FORMAT
