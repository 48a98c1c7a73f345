"""Prompt sets: plain text files with the source and target prompts of a map."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import MapError


@dataclass(frozen=True)
class PromptSet:
    """Source and target prompts, with what each side is called."""

    source_name: str
    target_name: str
    source: tuple[str, ...]
    target: tuple[str, ...]


def load_prompt_set(path: str | os.PathLike[str]) -> PromptSet:
    """Read a prompt set: a ``[source] name`` and a ``[target] name`` heading, below each one prompt a line.

    Empty lines and lines that begin with ``#`` do not count.

    Raises:
        MapError: no such file, or a side without heading or prompts.
    """
    path = Path(path)
    names: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"source": [], "target": []}
    side = ""
    for line in read_lines(path):
        heading, bracket, name = line.partition("]")
        if bracket and heading[1:] in prompts and line.startswith("["):
            side = heading[1:]
            names[side] = name.strip() or side
        elif not side:
            raise MapError(f"{path.name} is no prompt set: it must begin with a line '[source] name'.")
        else:
            prompts[side].append(line)
    for side, own in prompts.items():
        if not own:
            raise MapError(f"{path.name} has no {side} prompts; put them below a line '[{side}] name'.")
    return PromptSet(names["source"], names["target"], tuple(prompts["source"]), tuple(prompts["target"]))


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file that are neither empty nor comments."""
    path = Path(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise MapError(f"{path} cannot be read: {reason}.") from error
    return [line for line in lines if line and not line.startswith("#")]
