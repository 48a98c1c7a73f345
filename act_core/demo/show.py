"""What ``act-steering demo`` does and prints: one chapter after the other, and a page of all."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path

from ..models.transformers import TransformersModel
from . import from_pictures, language, pictures, removal, slider
from .chapter import Chapter
from .page import write_page

_WIDTH = 100


def show(output: Path, command: str, language_model: Callable[[], TransformersModel]) -> None:
    """Show all chapters, and write the page.

    Args:
        output: an existing folder for the maps, the pictures and the page.
        command: what to type to run ``act-steering``.
        language_model: loads the small default language model.
    """
    model = pictures.demo_model()
    chapters: list[Chapter] = []
    for number, part in enumerate((from_pictures, slider, removal), start=1):
        print(f"\n{number} of 4: {part.TITLE}", flush=True)
        chapters.append(part.show(model, output))
        _print(chapters[-1])
    print(f"\n4 of 4: {language.TITLE}", flush=True)
    chapters.append(language.show(language_model(), output))
    _print(chapters[-1])
    page = write_page(output, chapters)
    print(f"\nEverything, with the pictures, is in {page}: open it in a browser.")
    print("What to try next:")
    for chapter in chapters:
        for arguments in chapter.commands:
            print(f"  {command} {shlex.join(arguments)}")


def _print(chapter: Chapter) -> None:
    print(f"\n{_wrapped(chapter.story)}\n{_wrapped(chapter.fitted)}\n")
    table = [list(chapter.columns), *(list(row) for row in chapter.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{_wrapped(chapter.reading)}", flush=True)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
