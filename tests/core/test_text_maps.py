"""The text maps that ship, and the prompt sets they were fitted on."""

from __future__ import annotations

import pytest

from act_core import load_map, steer
from act_core.models.transformers import TransformersModel
from act_core.prompts import load_prompt_set
from tools.fit_text_maps import ROOT, STRENGTHS, TEXT_MAPS, TextMap

OPENING = "The woman at the corner table"

every_map = pytest.mark.parametrize("told", TEXT_MAPS, ids=lambda told: told.name)


@pytest.fixture(scope="session")
def unsteered(smollm2: TransformersModel) -> str:
    return smollm2.generate(OPENING, max_new_tokens=12, temperature=0)


@every_map
def test_prompt_sets_are_balanced_and_short(told: TextMap) -> None:
    prompts = load_prompt_set(ROOT / "prompt_sets" / f"{told.prompt_set}.txt")
    assert len(prompts.source) == len(prompts.target) >= 64
    assert max(len(line.split()) for line in (*prompts.source, *prompts.target)) <= 40


@every_map
def test_maps_fit_the_default_model_and_change_what_it_writes(
    told: TextMap, smollm2: TransformersModel, unsteered: str
) -> None:
    act_map = load_map(told.file)
    prompts = load_prompt_set(ROOT / "prompt_sets" / f"{told.prompt_set}.txt")
    # A prompt set that was changed without fitting the map anew would make the table of maps untrue.
    assert act_map.record.source_prompts == prompts.source
    assert act_map.record.target_prompts == prompts.target
    assert (act_map.card.license, act_map.card.strength_range) == ("CC0-1.0", STRENGTHS)
    assert told.file.stat().st_size < 400_000
    with steer(smollm2.module, act_map) as steering:
        steered = smollm2.generate(OPENING, max_new_tokens=12, temperature=0)
        assert not steering.warnings
        steering.check()
        coverage = steering.coverage
        steering.strength = 0
        again = smollm2.generate(OPENING, max_new_tokens=12, temperature=0)
    assert len(coverage.fired) == len(act_map)
    assert steered != unsteered == again
