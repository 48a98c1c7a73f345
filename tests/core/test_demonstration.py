"""The measurements and files of ``act-steering demo``."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SITES, SOURCE, TARGET
from PIL import Image

from act_core import ActMap, fit, load_map, save_map
from act_core.cli import main
from act_core.demo import from_pictures, language, removal, shipped, slider
from act_core.demo.chapter import Chapter
from act_core.demo.page import write_page
from act_core.demo.pictures import demo_model, palette_distance
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
        assert -1 <= row.mood.low <= row.mood.mean <= row.mood.high <= 1
        assert 1 < row.perplexity < 1000
        assert row.sample.startswith(language.openings()[0])
    assert rows[0].perplexity != rows[1].perplexity


def test_moods_of_plain_sentences_are_as_expected() -> None:
    glad, sad = language.moods(["What a wonderful, happy day!", "A terrible, sad and lonely day."])
    assert sad < 0 < glad


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, smollm2: TransformersModel) -> None:
    """A demonstration with few pictures, texts and steps."""
    for name, value in (("CONTINUATIONS", 2), ("NEW_TOKENS", 4), ("PARAGRAPHS", 1), ("STRENGTHS", (0.0, 1.0))):
        monkeypatch.setattr(language, name, value)
    monkeypatch.setattr(from_pictures, "STEPS", 2)
    for part, strengths in ((from_pictures, (0.0, 1.0)), (slider, (0.0, 1.0))):
        monkeypatch.setattr(part, "SUBJECTS", ("cat", "snail"))
        monkeypatch.setattr(part, "STRENGTHS", strengths)
    for name, value in (("WITH", ("red heart", "green heart")), ("WITHOUT", ("cat", "rocket"))):
        monkeypatch.setattr(removal, name, value)


@pytest.mark.usefixtures("short")
def test_demo_writes_page_pictures_and_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shown"
    assert main(["demo", "--output", str(folder)]) == 0
    made = {path.name for path in folder.iterdir()}
    sites = {"from_pictures": 20, "plain_to_ink": 20, "no_hearts": 20, "gloomy_to_cheerful": 30}
    pictures = {"given.png", "from_pictures.png", "sweep.png", "sweep.webp", "map.png", "hearts.png", "others.png"}
    assert made == {"index.html", *pictures, *(f"{name}.safetensors" for name in sites)}
    assert {name: len(load_map(folder / f"{name}.safetensors")) for name in sites} == sites
    page = (folder / "index.html").read_text("utf-8")
    printed = capsys.readouterr().out
    titles = "A style from a folder of pictures", "A slider from two lists of prompts", "A removal"
    titles = *titles, "The same with a language model"
    for text in (page, printed):
        places = [text.index(title) for title in titles]
        assert places == sorted(places)
    for name in made - {"index.html"}:
        assert name in page
    assert "shown/index.html" in printed


def test_removal_of_the_demo_changes_hearts_more_than_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WITH", "WITHOUT"):
        monkeypatch.setattr(removal, name, getattr(removal, name)[:3])
    chapter = removal.show(demo_model(), tmp_path)
    hearts, others = (float(row[1].split()[0]) for row in chapter.rows)
    # The six subjects of the demonstration differ by a factor of 15: gates are closed for other things.
    assert hearts > 5 * others


def test_page_shows_every_row_and_picture_of_every_chapter(fitted: ActMap, tmp_path: Path) -> None:
    path = save_map(fitted, tmp_path / "ink.safetensors")
    rows = [["0", "1.5 < 2"], ["1", "2"]]
    one, two = (
        Chapter(title, "What was given.", path, ("strength", "effect"), rows, "Read it so.", (("a.png", "a & b"),))
        for title in ("Plain <to> ink", "Removal")
    )
    page = write_page(tmp_path, [one, two]).read_text("utf-8")
    assert "<h2>Plain &lt;to&gt; ink</h2>" in page
    assert page.count("<tr><td>0<td>1.5 &lt; 2\n<tr><td>1<td>2") == 2
    assert page.count('<img src="a.png" alt="a &amp; b">') == 2
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    assert f'<a href="ink.safetensors" download>ink.safetensors</a>: {len(fitted)} sites, {size}' in page


def test_palette_distance_of_a_picture_from_others() -> None:
    red, grey = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (8, 8), "#808080")
    assert palette_distance(red, [red, red]) == 0
    # Red differs from grey by 127 of 255 in red, and by 128 in green and blue.
    assert palette_distance(red, [grey]) == pytest.approx((127 + 128 + 128) / 3 / 255)
    assert palette_distance(red, [red, grey]) < palette_distance(red, [grey])


def test_demo_finds_its_prompts_and_openings() -> None:
    assert (shipped("prompt_sets") / language.PROMPT_SET).is_file()
    assert len(language.openings()) == language.CONTINUATIONS
    assert all(opening.strip() for opening in language.openings())
