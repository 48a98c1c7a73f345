"""Draws text in any script: each character in the first system font that has it.

Pillow's own font covers little more than ASCII, and draws everything else as boxes. Characters that no font has are
written out, as ``[cat face]`` or ``U+732B``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

from PIL import ImageDraw, ImageFont

# By file name, as they come with Linux, Windows and macOS; Pillow looks for them in the font folders of the system.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "NotoEmoji-Regular.ttf",
    "Symbola.ttf",
    "seguiemj.ttf",
)
_NONCHARACTER = "\U0010ffff"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_text(draw: ImageDraw.ImageDraw, position: tuple[float, float], text: str, size: int) -> None:
    """Draw black text of one or several lines.

    Args:
        draw: draws on the picture.
        position: left and top, in pixels.
        text: in any script.
        size: height of the letters, in pixels.

    Example:
        >>> from PIL import Image
        >>> picture = Image.new("L", (60, 20), "white")
        >>> draw_text(ImageDraw.Draw(picture), (2, 2), "é", 13)
        >>> picture.getextrema()[0] < 100
        True
    """
    left, top = position
    for number, line in enumerate(text.split("\n")):
        x, baseline = left, top + size + number * line_height(size)
        for font, part in _runs(line, size):
            draw.text((x, baseline), part, "black", font, anchor="ls")
            x += font.getlength(part)


def line_height(size: int) -> int:
    """The distance between two lines, in pixels.

    Example:
        >>> line_height(13)
        17
    """
    return size + 4


def text_width(text: str, size: int) -> float:
    """The width of one line of text, in pixels.

    Example:
        >>> text_width("wide", 13) > text_width("i", 13) > 0
        True
    """
    return sum(font.getlength(part) for font, part in _runs(text, size))


def wrapped(text: str, width: float, size: int, max_lines: int | None = None) -> str:
    """Text in lines that are no wider than `width` pixels, broken at spaces or, in long words, anywhere.

    Args:
        text: one line.
        width: in pixels.
        size: height of the letters, in pixels.
        max_lines: longer text is cut off, and ends with ``...``.

    Example:
        >>> wrapped("a cat and a dog", 60, 13).count("\\n")
        1
    """
    lines = [""]
    for piece in _pieces(text, width, size):
        joined = f"{lines[-1]} {piece}" if lines[-1] else piece
        if text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(piece)
    lines = [line for line in lines if line] or [""]
    if max_lines is not None and len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and text_width(f"{last} ...", size) > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], f"{last.rstrip()} ...".lstrip()]
    return "\n".join(lines)


def _pieces(text: str, width: float, size: int) -> Iterator[str]:
    """The words of a text; those that are wider than a line in several pieces."""
    for word in text.split():
        piece = ""
        for character in word:
            if piece and text_width(piece + character, size) > width:
                yield piece
                piece = ""
            piece += character
        yield piece


def _runs(text: str, size: int) -> list[tuple[_Font, str]]:
    """The text in parts that one font can draw."""
    drawn = [place for character in text for place in _placed(character, size)]
    return [(font, "".join(part for _, part in group)) for font, group in groupby(drawn, key=lambda place: place[0])]


@cache
def _placed(character: str, size: int) -> tuple[tuple[_Font, str], ...]:
    """A character with the font that has it, or its replacement; nothing for an invisible character."""
    default = _default(size)
    if character.isspace():
        return ((default, " "),)
    # Joiners, marks of direction and variation selectors.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs") or unicodedata.name(character, "").startswith("VARIATION"):
        return ()
    for name in (None, *_SYSTEM_FONTS):
        font = default if name is None else _system_font(name, size)
        if font is not None and _glyph(font, character) != _glyph(font, _NONCHARACTER):
            return ((font, character),)
    return ((default, _described(character)),)


def _described(character: str) -> str:
    """A character that no font has, in ASCII."""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if plain:
        return plain
    name = unicodedata.name(character, "").lower()
    return f"[{name}]" if name and unicodedata.category(character) == "So" else f"U+{ord(character):04X}"


def _glyph(font: _Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask: Any = font.getmask(character)
    return mask.size, bytes(mask)


@cache
def _default(size: int) -> _Font:
    return ImageFont.load_default(size)


@cache
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # not installed
        return None
