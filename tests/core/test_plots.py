"""Pictures: labels in any script, drawn with fonts that have them, and the order of an animation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw

from act_core import fonts
from act_core.calibration import Calibration
from act_core.plots import calibration_chart, grid, save_animation

SIZE = 13
# The Pillow font lacks all of these, and draws the same box for each.
LABELS = ["é", "猫", "🐱"]


@pytest.fixture(autouse=True)
def no_cached_fonts() -> Iterator[None]:
    fonts._placed.cache_clear()
    yield
    fonts._placed.cache_clear()


@pytest.fixture
def only_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without fonts."""
    monkeypatch.setattr(fonts, "_SYSTEM_FONTS", ())


def drawn(text: str) -> Image.Image:
    picture = Image.new("L", (160, 20), "white")
    fonts.draw_text(ImageDraw.Draw(picture), (2, 2), text, SIZE)
    return picture


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def box() -> Image.Image:
    """How the Pillow font draws a missing character."""
    picture = Image.new("L", (160, 20), "white")
    ImageDraw.Draw(picture).text((2, 2 + SIZE), "\U0010ffff", "black", fonts._default(SIZE), anchor="ls")
    return picture


@pytest.mark.parametrize("label", LABELS)
def test_label_is_never_a_box(label: str) -> None:
    picture = drawn(label)
    assert not same(picture, box())
    assert not same(picture, drawn(""))


@pytest.mark.usefixtures("only_pillow")
@pytest.mark.parametrize(("label", "plain"), [("ǻ", "a"), ("猫", "U+732B"), ("🐱", "[cat face]"), ("a\u200bb", "ab")])
def test_label_without_font_is_written_out(label: str, plain: str) -> None:
    assert same(drawn(label), drawn(plain))
    assert fonts.text_width(label, SIZE) == fonts.text_width(plain, SIZE)


def test_labels_of_different_scripts_differ() -> None:
    pictures = [drawn(label) for label in LABELS]
    assert not any(same(one, other) for one in pictures for other in pictures if one is not other)


@pytest.mark.parametrize(
    "text", ["a lighthouse on a cliff by the sea", "a" * 61, "猫と灯台が海のそばにある静かな夜の風景"]
)
def test_wrapped_lines_fit(text: str) -> None:
    lines = fonts.wrapped(text, 60, SIZE).split("\n")
    assert len(lines) > 1
    assert all(fonts.text_width(line, SIZE) <= 60 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_wrapped_cuts_off_with_dots() -> None:
    text = fonts.wrapped("a lighthouse on a cliff by the sea", 60, SIZE, max_lines=2)
    assert text.count("\n") == 1
    assert text.endswith(" ...")
    assert all(fonts.text_width(line, SIZE) <= 60 for line in text.split("\n"))


def test_grid_leaves_pictures_free_of_labels() -> None:
    tile = Image.new("RGB", (40, 40), "teal")
    sheet = grid([[tile, tile]], ["猫" * 40], ["é" * 40, "1"])
    for column in range(2):
        left = 132 + 46 * column
        assert same(sheet.crop((left, sheet.height - 46, left + 40, sheet.height - 6)), tile)


def test_label_of_a_row_ends_above_the_next_row() -> None:
    sheet = grid([[Image.new("RGB", (20, 20))]] * 2, ["a very long description of a picture " * 4, ""], ["0"])
    below = sheet.crop((0, sheet.height - 26, 126, sheet.height))
    assert same(below, Image.new("RGB", below.size, "white"))


def test_animation_goes_through_the_columns_and_back(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    save_animation([[Image.new("RGB", (40, 40), colour) for colour in colours]], ["0", "1", "2"], tmp_path / "a.webp")
    shown: list[int] = []
    with Image.open(tmp_path / "a.webp") as animation:
        for number in range(getattr(animation, "n_frames", 1)):
            animation.seek(number)
            pixel = animation.convert("RGB").getpixel((20, animation.height - 20))
            assert isinstance(pixel, tuple)
            shown.append(pixel.index(max(pixel)))  # which colour is strongest
    assert shown == [0, 1, 2, 1]


def test_calibration_of_a_single_strength_is_drawn() -> None:
    """As a file of a stranger may have it."""
    chart = calibration_chart(Calibration((0.0,), (0.0,), (1.0,), (0.0, 1.0), negative="none"))
    assert chart.getpixel((240, 160)) == (240, 255, 240)  # inside the recommended range, from 0 to 1
