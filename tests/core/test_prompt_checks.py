"""Checks of prompt files, and what they find in the files that ship."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from command_line import Run, refused

from act_core import MapError
from act_core.prompt_checks import check_prompt_file, clip_tokens, mean_words
from act_core.prompts import load_prompt_set, read_lines

SHIPPED = Path(__file__).parents[2] / "prompt_sets"
SETS = sorted(SHIPPED.glob("*.txt"))
LOOKS = sorted(SHIPPED.glob("look_*.txt"))
CAPTIONS = SHIPPED / "captions" / "neutral_captions.txt"


def written(folder: Path, source: list[str], target: list[str]) -> Path:
    path = folder / "set.txt"
    path.write_text("\n".join(["[source] plain", *source, "[target] ink", *target]), "utf-8")
    return path


SOURCE = ["photo of a cat", "photo of a boat", "photo of two dogs", "photo of the sea"]
TARGET = ["ink drawing of a cat", "ink sketch of a boat", "two dogs in ink", "ink drawing of the sea"]


def test_good_set_has_no_warnings(tmp_path: Path) -> None:
    report = check_prompt_file(written(tmp_path, SOURCE, TARGET))
    assert report.summary == "set.txt: 4 pairs, plain to ink"
    assert not report.warnings


def test_report_shows_lengths_and_words_of_one_side(tmp_path: Path) -> None:
    lengths, target, source = check_prompt_file(written(tmp_path, SOURCE, TARGET)).facts
    assert lengths == "mean words of a source prompt: 4.0; mean words of a target prompt: 4.8"
    assert target == "words on the target side only: ink (100%), drawing (50%), sketch (25%), in (25%)"
    assert source == "words on the source side only: photo (100%)"


@pytest.mark.parametrize(
    ("source", "target", "warning"),
    [
        (
            [*SOURCE, "Photo of  a cat"],
            [*TARGET, "ink"],
            "1 source prompt is there more than once, such as 'photo of a cat'",
        ),
        (SOURCE, [*TARGET[:3], SOURCE[0]], "1 source prompt is also on the target side, such as 'photo of a cat'"),
        (SOURCE, TARGET[:3], "The sides differ in number (4 and 3)"),
        (SOURCE, [f"{prompt} on thick paper" for prompt in TARGET], "one side are 1.9 times as long"),
        (SOURCE, [*TARGET[:3], "ink, " * 38], "1 target prompt is longer than the 77 tokens of CLIP"),
        (SOURCE, [*TARGET[:3], "ink of\x07 the sea"], "Line 10 contains the control character U+0007"),
        (SOURCE, [*TARGET[:3], "ink of\x0cthe sea"], "Line 10 contains the control character U+000C"),
    ],
    ids=["duplicate", "both sides", "number", "length", "tokens", "bell", "form feed"],
)
def test_warning_names_what_is_wrong(tmp_path: Path, source: list[str], target: list[str], warning: str) -> None:
    report = check_prompt_file(written(tmp_path, source, target))
    assert any(warning in found for found in report.warnings), report.warnings


def test_list_without_headings_is_checked_as_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a cat\na dog\na cat\n", "utf-8")
    report = check_prompt_file(path)
    assert report.summary == "list.txt: a list of 3 prompts"
    assert report.warnings == ("1 prompt is there more than once, such as 'a cat'.",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no prompts"),
        ("[source]\na\nb\n", "no target prompts"),
        ("[source]\na\n[target]\nb\nc\n", "1 prompt on the source side"),
        ("[source]\na\nb\n[target]\nb\na\n", "are the same"),
        ("a\n[source]\nb\n[target]\nc\n", "must begin with a line"),
    ],
)
def test_unusable_file_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "set.txt"
    path.write_text(content, "utf-8")
    with pytest.raises(MapError, match=reason) as caught:
        check_prompt_file(path)
    assert "set.txt" in str(caught.value)


def test_command_reports_every_file_and_exits_0_with_warnings(run: Run, tmp_path: Path) -> None:
    status, text, err = run("check-prompts", written(tmp_path, SOURCE, TARGET[:3]), CAPTIONS)
    assert (status, err) == (0, "")
    assert "set.txt: 4 source and 3 target prompts" in text
    assert "Warning: The sides differ in number" in text
    assert "neutral_captions.txt: a list of 256 prompts" in text


def test_command_refuses_unusable_files_and_still_reports_others(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n", "utf-8")
    result = run("check-prompts", empty, CAPTIONS, tmp_path / "gone.txt")
    refused(result, "empty.txt has no prompts", "1 more of the files")
    assert "a list of 256 prompts" in result[1]


def test_command_prints_no_control_characters(run: Run, tmp_path: Path) -> None:
    hostile = "ink \x1b[31m of a cat"
    status, text, _ = run("check-prompts", written(tmp_path, SOURCE, [hostile, hostile, *TARGET]))
    assert status == 0
    assert "U+001B" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("path", [*SETS, CAPTIONS], ids=lambda path: path.stem)
def test_shipped_file_has_only_known_warnings(path: Path) -> None:
    """The demo model knows subjects of one or two words, so that its sides cannot be of one length."""
    warnings = check_prompt_file(path).warnings
    known = "times as long" if path.stem == "plain_to_ink" else None
    assert [warning for warning in warnings if not (known and known in warning)] == []


@pytest.mark.parametrize("path", LOOKS, ids=lambda path: path.stem)
def test_look_has_48_pairs_of_similar_length(path: Path) -> None:
    prompts = load_prompt_set(path)
    assert len(prompts.source) == len(prompts.target) == 48
    assert 0.8 < mean_words(prompts.target) / mean_words(prompts.source) < 1.25


@pytest.mark.parametrize("path", LOOKS, ids=lambda path: path.stem)
def test_look_shows_same_scene_on_both_sides(path: Path) -> None:
    """Each source prompt shares more rare words with its own target prompt than with any other."""
    prompts = load_prompt_set(path)
    sides = [[set(re.findall(r"\w+", prompt.lower())) for prompt in side] for side in (prompts.source, prompts.target)]
    counts = Counter(word for side in sides for words in side for word in words)
    for number, words in enumerate(sides[0]):
        shared = [sum(1 / counts[word] for word in words & target) for target in sides[1]]
        assert max(shared) == shared[number], prompts.source[number]


def test_looks_show_different_scenes() -> None:
    prompts = [prompt for path in LOOKS for prompt in load_prompt_set(path).source]
    assert len({prompt.lower() for prompt in prompts}) == len(prompts)


def test_captions_have_no_word_of_a_look() -> None:
    captions = read_lines(CAPTIONS)
    assert len(captions) == len(set(captions)) == 256
    words = {word for caption in captions for word in caption.lower().split()}
    looks = "photo picture painting drawing watercolour ink film cinematic vintage neon golden moody minimalist style"
    assert not words & set(looks.split())


def test_clip_tokens_counts_words_and_punctuation() -> None:
    assert clip_tokens("") == 2
    assert clip_tokens("a cat, a dog.") == 8
