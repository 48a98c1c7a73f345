"""Fit ACT Map From Images names pictures without captions before it refines a map, on the demo model in the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_host import run_inside

SHOWN = ("cat", "rocket", "castle", "sunflower", "umbrella", "key", "bell", "snail")


@pytest.fixture(scope="module")
def everything(host_python: Path) -> dict[str, Any]:
    return json.loads(run_inside(host_python, "naming.py", *SHOWN))


def test_pictures_without_captions_are_named(everything: dict[str, Any]) -> None:
    """The demo model finds the words that it drew its own pictures from; chance is 3 of 24."""
    chosen = everything["chosen"]
    assert all(len(set(words)) == 3 for words in chosen)
    assert sum(word in words for word, words in zip(SHOWN, chosen, strict=True)) >= 7


@pytest.mark.parametrize("case", ["named", "model only"])
def test_record_shows_captions_and_number_of_pictures(case: str, everything: dict[str, Any]) -> None:
    found = everything[case]
    assert found["fitted by"] == "refinement"
    assert found["captions"] == [words[0] for words in everything["chosen"]]
    assert found["count"] == len(SHOWN)
    assert sum("the likeliest 3 of 24 words" in note for note in found["notes"]) == 1
    assert ("clip_l" in found["components"]) == (case == "named")


def test_steps_draw_from_all_captions(everything: dict[str, Any]) -> None:
    drawn, chosen = set(everything["drawn"]), everything["chosen"]
    assert drawn <= {word for words in chosen for word in words}
    assert all(drawn & {words[number] for words in chosen} for number in range(3))


@pytest.mark.parametrize(("case", "captions"), [("off", [""] * len(SHOWN)), ("captioned", list(SHOWN))])
def test_no_picture_is_named(case: str, captions: list[str], everything: dict[str, Any]) -> None:
    found = everything[case]
    assert found["captions"] == captions
    assert not any("captions found" in note for note in found["notes"])


@pytest.mark.parametrize("name", ["Qwen-Image", "Wan 2.1", "SDXL"])
def test_models_with_other_text_encoders_name_pictures(name: str, everything: dict[str, Any]) -> None:
    found = everything["others"][name]
    assert found["fitted by"] == "refinement"
    assert all(found["captions"])
    assert found["components"] == ["diffusion_model"]


def test_words_are_left_out_if_memory_is_short(everything: dict[str, Any]) -> None:
    assert everything["words in little memory"] == []


def test_interrupt_ends_the_naming(everything: dict[str, Any]) -> None:
    assert everything["interrupted"]


def test_transport_takes_over_before_pictures_are_named(everything: dict[str, Any]) -> None:
    found = everything["not differentiable"]
    assert everything["named in vain"] == 0
    assert found["fitted by"] == "transport"
    assert not any(found["captions"])
    assert found["notes"][0].startswith("fitted by transport rather than refined")
    assert "source pictures drawn by the model without captions" in found["notes"]
