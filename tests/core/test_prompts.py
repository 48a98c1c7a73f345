"""Prompt sets: plain text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from act_core import MapError
from act_core.prompts import PromptSet, load_prompt_set, prompt_lines, read_lines

SHIPPED = Path(__file__).parents[2] / "prompt_sets"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "set.txt"


def test_load_skips_comments_and_empty_lines(file: Path) -> None:
    file.write_text("# calm or wild\n\n[source] calm\n one \n# no prompt\ntwo\n\n[target] wild\nthree\n", "utf-8")
    assert load_prompt_set(file) == PromptSet("calm", "wild", ("one", "two"), ("three",))


def test_load_accepts_unnamed_sides_in_any_order(file: Path) -> None:
    file.write_text("[target]\nb\n[source]\na\n", "utf-8")
    assert load_prompt_set(file) == PromptSet("source", "target", ("a",), ("b",))


def test_load_keeps_prompts_with_brackets(file: Path) -> None:
    file.write_text("[source]\n[portrait] of a cat\na [cat]\n[target]\n[b\n", "utf-8")
    assert load_prompt_set(file).source == ("[portrait] of a cat", "a [cat]")
    assert load_prompt_set(file).target == ("[b",)


@pytest.mark.parametrize("content", ["[source] a\r\nx\r\n[target] b\r\ny\r\n", "\ufeff[source] a\nx\n[target] b\ny"])
def test_load_accepts_windows_line_ends_and_byte_order_mark(file: Path, content: str) -> None:
    file.write_bytes(content.encode())
    assert load_prompt_set(file) == PromptSet("a", "b", ("x",), ("y",))


def test_load_keeps_prompts_of_any_script(file: Path) -> None:
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
def test_load_refuses_incomplete_set_and_names_file(file: Path, content: str, reason: str) -> None:
    file.write_text(content, "utf-8")
    with pytest.raises(MapError, match=reason) as caught:
        load_prompt_set(file)
    assert "set.txt" in str(caught.value)


def test_read_lines_refuses_unreadable_file_and_names_it(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("[source]\nétude\n".encode("latin-1"))
    for path, reason in ((tmp_path / "none.txt", "No such file"), (tmp_path, "directory"), (latin, "not UTF-8")):
        with pytest.raises(MapError, match=reason) as caught:
            read_lines(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("heading", ["[ target ] b", "[Target] b", "[TARGET]b", "[\ttarget\t]\tb", "\ufeff[target] b"])
def test_load_accepts_headings_however_written(file: Path, heading: str) -> None:
    file.write_text(f"[Source] a\nx\n{heading}\ny\n", "utf-8")
    assert load_prompt_set(file) == PromptSet("a", "b", ("x",), ("y",))


def test_load_accepts_joined_files_with_byte_order_marks(file: Path) -> None:
    """The output of ``cat source.txt target.txt`` for two files from Notepad."""
    file.write_bytes("\ufeff[source] a\r\nx\r\n\ufeff[target] b\r\n\ufeffy\r\n".encode())
    assert load_prompt_set(file) == PromptSet("a", "b", ("x",), ("y",))


@pytest.mark.parametrize("line", ["", " ", "\u200b", "\ufeff", "\u200b \u2060", "\u200d\u200f", "# note", "  #note"])
def test_prompt_lines_skips_lines_without_a_prompt(line: str) -> None:
    assert prompt_lines(f"a\n{line}\nb") == ["a", "b"]


@pytest.mark.parametrize("line", ["\u3164", "\u2800", "\uffa0", "\ufe0f", "\u0301"])
def test_prompt_lines_skips_lines_that_show_nothing(line: str) -> None:
    assert prompt_lines(f"a\n{line}\nb") == ["a", "b"]


def test_prompt_lines_keeps_characters_inside_a_prompt() -> None:
    texts = ["a # b", "\u200f\u05d7\u05ea\u05d5\u05dc", "\u0645\u06cc\u200c\u062e\u0648\u0627", "👩\u200d🎨", "[source"]
    assert prompt_lines("\r\n".join(texts)) == texts


def test_prompt_lines_reads_text_as_load_reads_a_side(file: Path) -> None:
    text = "one\n# comment\n\u200b\n two "
    file.write_text(f"[source]\n{text}\n[target]\nx", "utf-8")
    assert list(load_prompt_set(file).source) == prompt_lines(text) == ["one", "two"]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_set_is_ready_to_fit(path: Path) -> None:
    shipped = load_prompt_set(path)
    assert min(len(shipped.source), len(shipped.target)) >= 32
    both = (*shipped.source, *shipped.target)
    assert len(set(both)) == len(both)


def test_shipped_sets_exist() -> None:
    assert list(SHIPPED.glob("*.txt"))
