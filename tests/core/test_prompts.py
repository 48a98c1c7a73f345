"""Prompt sets: plain text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from act_core import MapError
from act_core.prompts import PromptSet, load_prompt_set, read_lines

SHIPPED = Path(__file__).parent.parent / "prompt_sets"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "set.txt"


def test_headings_comments_and_empty_lines(file: Path) -> None:
    file.write_text("# calm or wild\n\n[source] calm\n one \n# no prompt\ntwo\n\n[target] wild\nthree\n", "utf-8")
    assert load_prompt_set(file) == PromptSet("calm", "wild", ("one", "two"), ("three",))


def test_sides_may_be_unnamed_and_come_in_any_order(file: Path) -> None:
    file.write_text("[target]\nb\n[source]\na\n", "utf-8")
    assert load_prompt_set(file) == PromptSet("source", "target", ("a",), ("b",))


def test_a_prompt_may_hold_brackets(file: Path) -> None:
    file.write_text("[source]\n[portrait] of a cat\na [cat]\n[target]\n[b\n", "utf-8")
    assert load_prompt_set(file).source == ("[portrait] of a cat", "a [cat]")
    assert load_prompt_set(file).target == ("[b",)


@pytest.mark.parametrize("content", ["[source] a\r\nx\r\n[target] b\r\ny\r\n", "\ufeff[source] a\nx\n[target] b\ny"])
def test_files_of_other_systems_are_read_alike(file: Path, content: str) -> None:
    file.write_bytes(content.encode())
    assert load_prompt_set(file) == PromptSet("a", "b", ("x",), ("y",))


def test_prompts_may_be_in_any_language(file: Path) -> None:
    file.write_text("[source]\n静かな海\n[target]\nGröße\n", "utf-8")
    assert load_prompt_set(file).source == ("静かな海",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no source prompts"),
        ("[source]\na\n", "no target prompts"),
        ("[source]\n[target]\nb\n", "no source prompts"),
        ("a\n[source]\nb\n[target]\nc\n", "must begin with a line"),
    ],
)
def test_a_file_that_is_no_prompt_set_is_refused_by_name(file: Path, content: str, reason: str) -> None:
    file.write_text(content, "utf-8")
    with pytest.raises(MapError, match=reason) as caught:
        load_prompt_set(file)
    assert "set.txt" in str(caught.value)


def test_missing_files_folders_and_other_encodings_are_refused_by_name(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("[source]\nétude\n".encode("latin-1"))
    for path, reason in ((tmp_path / "none.txt", "No such file"), (tmp_path, "directory"), (latin, "not UTF-8")):
        with pytest.raises(MapError, match=reason) as caught:
            read_lines(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_sets_are_ready_to_fit(path: Path) -> None:
    shipped = load_prompt_set(path)
    assert min(len(shipped.source), len(shipped.target)) >= 32
    both = (*shipped.source, *shipped.target)
    assert len(set(both)) == len(both)


def test_sets_are_shipped() -> None:
    assert list(SHIPPED.glob("*.txt"))
