"""The shipped text maps, and the prompt sets they were fitted on."""

from __future__ import annotations

import pytest

from act_core import load_map
from act_core.models.transformers import TransformersModel
from act_core.prompts import load_prompt_set
from tools.fit_text_maps import ROOT, STRENGTHS, TEXT_MAPS, TextMap

OPENING = "The woman at the corner table"

all_maps = pytest.mark.parametrize("text_map", TEXT_MAPS, ids=lambda text_map: text_map.name)


@pytest.fixture(scope="session")
def unsteered(smollm2: TransformersModel) -> str:
    return smollm2.generate([OPENING], max_new_tokens=12, temperature=0)[0]


@all_maps
def test_prompt_set_is_balanced_and_short(text_map: TextMap) -> None:
    prompts = load_prompt_set(ROOT / "prompt_sets" / f"{text_map.prompt_set}.txt")
    assert len(prompts.source) == len(prompts.target) >= 64
    assert max(len(line.split()) for line in (*prompts.source, *prompts.target)) <= 40


@all_maps
def test_map_matches_default_model_and_changes_its_text(
    text_map: TextMap, smollm2: TransformersModel, unsteered: str
) -> None:
    act_map = load_map(text_map.file)
    prompts = load_prompt_set(ROOT / "prompt_sets" / f"{text_map.prompt_set}.txt")
    # If a prompt set changes, the map must be refitted, or the table of maps is wrong.
    assert act_map.record.source_prompts == prompts.source
    assert act_map.record.target_prompts == prompts.target
    assert (act_map.card.license, act_map.card.strength_range) == ("CC0-1.0", STRENGTHS)
    assert text_map.file.stat().st_size < 400_000
    with smollm2.steer(act_map) as steering:
        (steered,) = smollm2.generate([OPENING], max_new_tokens=12, temperature=0)
        assert not steering.warnings
        coverage = steering.coverage
        steering.strength = 0
        (again,) = smollm2.generate([OPENING], max_new_tokens=12, temperature=0)
    assert len(coverage.fired) == len(act_map)
    assert steered != unsteered == again
