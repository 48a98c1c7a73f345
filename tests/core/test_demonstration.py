"""The measurements and files of ``act-steering demo``."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SITES, SOURCE, TARGET

from act_core import fit, load_map
from act_core.cli import main
from act_core.demo import language, pictures, shipped
from act_core.models.transformers import TransformersModel


def test_demo_measures_mood_and_perplexity_at_each_strength(
    smollm2: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CONTINUATIONS", 2), ("NEW_TOKENS", 4), ("PARAGRAPHS", 1)):
        monkeypatch.setattr(language, name, value)
    act_map = fit(smollm2, SOURCE, TARGET, sites=SITES)
    steps: list[int] = []
    rows = language.measure(smollm2, act_map, (0.0, 1.0), lambda: steps.append(1))
    assert [row.strength for row in rows] == [0, 1]
    assert len(steps) == 2
    for row in rows:
        assert -1 <= row.interval[0] <= row.mood <= row.interval[1] <= 1
        assert 1 < row.perplexity < 1000
        assert row.sample.startswith(language.openings()[0])
    assert rows[0].perplexity != rows[1].perplexity


def test_moods_of_plain_sentences_are_as_expected() -> None:
    glad, sad = language.moods(["What a wonderful, happy day!", "A terrible, sad and lonely day."])
    assert sad < 0 < glad


@pytest.mark.usefixtures("smollm2")
def test_demo_writes_page_pictures_and_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("CONTINUATIONS", 2), ("NEW_TOKENS", 4), ("PARAGRAPHS", 1), ("STRENGTHS", (0.0, 1.0))):
        monkeypatch.setattr(language, name, value)
    for name, value in (("SUBJECTS", ("cat", "bell")), ("STRENGTHS", (0.0, 1.0))):
        monkeypatch.setattr(pictures, name, value)
    assert main(["demo", "--output", str(tmp_path / "shown")]) == 0
    made = {path.name for path in (tmp_path / "shown").iterdir()}
    maps = {"plain_to_ink.safetensors", "gloomy_to_cheerful.safetensors"}
    assert made == {"index.html", "sweep.png", "sweep.webp", "map.png"} | maps
    assert {len(load_map(tmp_path / "shown" / name)) for name in maps} == {20, 30}
    printed = capsys.readouterr().out
    for path in ("index.html", *maps):
        assert f"shown/{path}" in printed


def test_demo_finds_its_prompts_and_openings() -> None:
    assert (shipped("prompt_sets") / language.PROMPT_SET).is_file()
    assert len(language.openings()) == language.CONTINUATIONS
    assert all(opening.strip() for opening in language.openings())
