"""One part of the demonstration: what it prints, and what the page shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..mapfile import load_map, save_map
from ..maps import ActMap


@dataclass(frozen=True)
class Chapter:
    """What a part of the demonstration found.

    Attributes:
        title: its heading.
        story: what was given, and what the map does, in a few sentences.
        map_file: the map, in the folder of the page.
        columns: the headings of its table.
        rows: the table.
        reading: how to read the table.
        pictures: names of picture files in the same folder, with descriptions.
        commands: to try next.
    """

    title: str
    story: str
    map_file: Path
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    reading: str
    pictures: Sequence[tuple[str, str]] = ()
    commands: Sequence[Sequence[str]] = ()

    @property
    def fitted(self) -> str:
        """What the map is, in a sentence."""
        size = self.map_file.stat().st_size / 1e6
        return f"{self.map_file.name}: {len(load_map(self.map_file))} sites, {size:.2f} MB, saved and loaded again."


def saved(act_map: ActMap, path: Path, title: str, description: str, strengths: tuple[float, float]) -> ActMap:
    """The map, saved with its range of strengths and loaded again."""
    save_map(act_map, path, title=title, description=description, license="CC0-1.0", strength_range=strengths)
    return load_map(path)
