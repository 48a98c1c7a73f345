"""The translations of the nodes: complete, and of the texts that the nodes show now."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tools.make_locales import LOCALES

LANGUAGES = ("de", "fr", "es", "ja", "zh", "ko")
# Combo values, numbers and names of types that a translation must keep as they are.
KEPT = re.compile(r"\b(?:ACT|MODEL|CLIP|VAE|LATENT|LoRA|SDXL|Flux|ComfyUI)\b|`[^`]+`|models/\w+")


def load(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


def texts(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text, with the keys that lead to it."""
    if isinstance(part, str):
        yield path, part
        return
    for key, inner in part.items():
        yield from texts(inner, (*path, key))


def test_every_language_has_a_folder_and_nothing_else_has() -> None:
    assert sorted(folder.name for folder in LOCALES.iterdir()) == sorted(["en", *LANGUAGES])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_key_is_missing_or_stale(language: str) -> None:
    assert [path for path, _ in texts(load(language))] == [path for path, _ in texts(load("en"))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_left_in_english(language: str) -> None:
    english = dict(texts(load("en")))
    found = dict(texts(load(language)))
    assert all(text.strip() for text in found.values())
    # A name such as "clip" may be the same in every language; a sentence is not.
    left = [path for path, text in found.items() if path[-1] in ("tooltip", "description") and text == english[path]]
    assert left == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_keep_types_and_values(language: str) -> None:
    english = dict(texts(load("en")))
    changed = {
        path: lost
        for path, text in texts(load(language))
        if path[-1] != "display_name"
        and (lost := {word for word in KEPT.findall(english[path]) if word not in text and word != "ACT"})
    }
    assert changed == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_name_nodes_as_their_titles_do(language: str) -> None:
    """A text that mentions another node uses the title that the node has in the same language."""
    english, translated = load("en"), load(language)
    titles = {english[node]["display_name"]: translated[node]["display_name"] for node in english}
    # Longest first: "Apply ACT Steering" is the beginning of "Apply ACT Steering (CLIP only)".
    pattern = re.compile("|".join(re.escape(title) for title in sorted(titles, key=len, reverse=True)))
    found = dict(texts(translated))
    wrong = {
        path: title
        for path, text in texts(english)
        if path[-1] != "display_name"
        for title in pattern.findall(text)
        if titles[title] not in found[path]
    }
    assert wrong == {}
