"""What the benchmarks of pictures judge on, against what was fitted on."""

from __future__ import annotations

from typing import Any

import torch

from act_core import load_map
from act_core.prompts import read_lines
from benchmarks.lib.models import DATA, ROOT
from benchmarks.lib.pictures import held_out_concepts, shipped_concepts
from benchmarks.lib.removals import Removal
from tools.fit_demo_maps import DEMO_MAPS
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES, Emoji

NAMES = tuple(f"{colour} {thing}" for thing in ("heart", "square", "cat", "tree") for colour in ("red", "blue", "pink"))


class Bench:
    """What `Removal.of` takes of a `StyleBench`."""

    def __init__(self) -> None:
        self.pictures = emoji()
        self.concepts = held_out_concepts(self.pictures)
        self.fit_concepts = [c for c in range(len(NAMES)) if c not in self.concepts]

    def captions(self, style: int, concepts: list[int]) -> list[str]:
        return [caption(NAMES[concept], (), style) for concept in concepts]


def emoji(names: tuple[str, ...] = NAMES) -> Emoji:
    images = torch.zeros(len(STYLES), len(names), 3, 1, 1, dtype=torch.uint8)
    return Emoji(images, names, ((),) * len(names), torch.ones(len(STYLES), len(names), dtype=torch.bool))


def test_concepts_that_a_map_was_fitted_on_are_not_judged() -> None:
    names = tuple(sorted(shipped_concepts())) + NAMES
    assert {names[c] for c in held_out_concepts(emoji(names))} & shipped_concepts()  # they would be
    assert not {names[c] for c in held_out_concepts(emoji(names), shipped_concepts())} & shipped_concepts()


def test_shipped_concepts_are_those_of_every_shipped_style_map() -> None:
    fitted = [set(load_map(one.file).record.source_prompts) for one in DEMO_MAPS if one.style]
    assert fitted
    assert all(prompts == shipped_concepts() for prompts in fitted)


def test_settings_of_a_removal_are_chosen_without_the_words_of_the_test() -> None:
    bench: Any = Bench()
    chosen = Removal.of("square", bench, 8, without=("heart",))
    assert chosen.asking
    assert chosen.others
    assert not any("heart" in text for text in (*chosen.asking, *chosen.others, *chosen.both))
    assert any("heart" in text for text in Removal.of("square", bench, 8).others)


def test_no_opening_begins_a_text_that_maps_are_fitted_on() -> None:
    fitted = [text for path in (ROOT / "prompt_sets").glob("*.txt") for text in path.read_text("utf-8").splitlines()]
    fitted += (DATA / "concepts.txt").read_text("utf-8").splitlines()
    assert len(fitted) > 1000
    for name in ("openings_dev.txt", "openings_test.txt"):
        assert not [opening for opening in read_lines(DATA / name) if any(opening in text for text in fitted)]
