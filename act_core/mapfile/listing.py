"""What the maps in a folder are, read from their headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..errors import MapError, MapFileError
from ..text import plain_text, shorten
from .format import SUFFIX
from .header import MapHeader
from .read import read_header

MAX_FILES = 100_000
_MAX_NAME = 120
_MAX_TEXT = 40


@dataclass(frozen=True)
class ListedMap:
    """One file in a listing.

    Attributes:
        path: of the file.
        name: its path inside the folder, with slashes, as one line that a terminal can show.
        size: of the file, in bytes.
        header: what it says about its map; None if it is not a usable map.
        problem: why not, in one sentence; empty if it is.
    """

    path: Path
    name: str
    size: int
    header: MapHeader | None
    problem: str = ""

    def mentions(self, text: str) -> bool:
        """Whether the name, title, model or tags contain a text, in any case."""
        words = [self.name]
        if self.header is not None:
            words += [self.header.card.title, self.header.card.tags, self.header.record.model]
        return any(text.strip().lower() in word.lower() for word in words)

    @property
    def effect(self) -> float | None:
        """Median over sites of how far the map moves the mean, in standard deviations; None if not known."""
        effects = () if self.header is None else self.header.effects
        known = [effect for effect in effects if effect is not None]
        return median(known) if known else None

    @property
    def strengths(self) -> str:
        """The range of strengths that is recommended."""
        ends = None if self.header is None else self.header.card.strength_range
        return "" if ends is None else "{:.3g} to {:.3g}".format(*ends)


def list_maps(folder: str | os.PathLike[str]) -> list[ListedMap]:
    """The maps in a folder and its subfolders, by name.

    Links are followed only to files inside the folder. A file that is not a usable map is listed with the reason.

    Raises:
        MapFileError: this is not a folder, or it has too many files.

    Example:
        >>> list_maps("nowhere")
        Traceback (most recent call last):
        ...
        act_core.errors.MapFileError: nowhere is not a folder; name the folder that has the maps.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MapFileError(f"{folder} is not a folder; name the folder that has the maps.")
    return [list_map(path, path.relative_to(folder).as_posix()) for path in sorted(_files(folder))]


def _files(folder: Path) -> Iterator[Path]:
    root, count = Path(os.path.realpath(folder)), 0
    for place, _, names in os.walk(folder):
        for name in names:
            count += 1
            if count > MAX_FILES:
                raise MapFileError(f"{folder} has more than {MAX_FILES} files; name the folder that has the maps.")
            path = Path(place, name)
            if path.suffix != SUFFIX or name.startswith("."):
                continue
            # Folders that are links are not entered. For links in a loop Path.resolve would raise.
            if not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root):
                yield path


def list_map(path: Path, name: str) -> ListedMap:
    """One file, under the name by which it is listed."""
    name = " ".join(plain_text(name).split())
    try:
        header = read_header(path)
        return ListedMap(path, name, path.stat().st_size, header)
    except MapError as error:
        return ListedMap(path, name, 0, None, str(error))
    except OSError as error:
        return ListedMap(path, name, 0, None, f"it cannot be read: {error.strerror or error}.")


def table_of(maps: Sequence[ListedMap]) -> str:
    """The listing as text, a line for each map.

    Example:
        >>> table_of([])
        'There are no maps here.'
    """
    if not maps:
        return "There are no maps here."
    rows = [("file", "title", "model", "effect", "strength", "size", "hash")]
    rows += [_row(listed) for listed in maps if listed.header is not None]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{shorten(listed.name, _MAX_NAME)}: {listed.problem}" for listed in maps if listed.header is None]
    return "\n".join(lines)


def _row(listed: ListedMap) -> tuple[str, ...]:
    assert listed.header is not None
    effect = "" if listed.effect is None else f"{listed.effect:.2f}"
    size = f"{listed.size / 1e6:.2f} MB"
    return (
        shorten(listed.name, _MAX_NAME),
        shorten(listed.header.card.title, _MAX_TEXT),
        shorten(listed.header.record.model, _MAX_TEXT),
        effect,
        listed.strengths,
        size,
        shorten(listed.header.tensors_sha256[:12], 12),
    )
