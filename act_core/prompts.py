"""Prompt sets: plain text files with the source and target prompts of a map, and the one rule for reading them."""

from __future__ import annotations

import os
import re
import string
from dataclasses import dataclass
from pathlib import Path

from .errors import MapError
from .text import is_blank

_HEADING = re.compile(r"\[\s*(source|target)\s*\]\s*(.*)", re.IGNORECASE)
# Joining files leaves byte order marks in mid-file; the others come from text copied from web pages.
_AROUND = string.whitespace + "\x85\u00a0\u2028\u2029\u3000\u200b\u2060\ufeff"


@dataclass(frozen=True)
class PromptSet:
    """Source and target prompts, and the name of each side.

    Example:
        >>> PromptSet("calm", "wild", ("a lake",), ("a storm",)).target_name
        'wild'
    """

    source_name: str
    target_name: str
    source: tuple[str, ...]
    target: tuple[str, ...]


def prompt_lines(text: str) -> list[str]:
    """The prompts in a text with one prompt per line, as in files, nodes and the command line.

    Blank lines are skipped, and so are comments, which begin with ``#``. White space and byte order marks around a
    prompt are removed.

    Example:
        >>> prompt_lines(" a cat \\n\\n# a comment\\n\\u200b\\na dog")
        ['a cat', 'a dog']
    """
    stripped = (line.strip(_AROUND) for line in text.splitlines())
    return [line for line in stripped if not line.startswith("#") and not is_blank(line)]


def is_heading(line: str) -> bool:
    """Whether a line of a file begins a side of a prompt set.

    Example:
        >>> [is_heading(line) for line in ("[source] calm", "[Target]", "[portrait] of a cat")]
        [True, True, False]
    """
    return _HEADING.fullmatch(line) is not None


def load_prompt_set(path: str | os.PathLike[str]) -> PromptSet:
    """Read a prompt set: below each of the headings ``[source] name`` and ``[target] name``, one prompt per line.

    Lines are read as by `prompt_lines`; headings may be in any case, and their names may be missing.

    Raises:
        MapError: the file cannot be read, or a side has no heading or no prompts.
    """
    path = Path(path)
    names: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"source": [], "target": []}
    side = ""
    for line in read_lines(path):
        if heading := _HEADING.fullmatch(line):
            side = heading[1].lower()
            names[side] = heading[2].strip() or side
        elif not side:
            raise MapError(f"{path.name} is not a prompt set: it must begin with a line '[source] name'.")
        else:
            prompts[side].append(line)
    for side, found in prompts.items():
        if not found:
            raise MapError(f"{path.name} has no {side} prompts; put them below a line '[{side}] name'.")
    return PromptSet(names["source"], names["target"], tuple(prompts["source"]), tuple(prompts["target"]))


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The prompts in a text file, as `prompt_lines`.

    Raises:
        MapError: the file cannot be read, or is not UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise MapError(f"{path} cannot be read: {reason}.") from error
    return prompt_lines(text)
