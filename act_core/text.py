"""Plain text: cleans prompts and descriptions before they are saved in a map or shown."""

from __future__ import annotations

import re
import unicodedata

_REPLACEMENT = "\ufffd"
# Letters and symbols that show nothing: the fillers of Hangul and the empty pattern of Braille.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
# Control characters (Cc) but tab and newline, and halves of surrogate pairs (Cs); Unicode will never add any.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain_text(text: str) -> str:
    """The text as a map can keep it and a terminal can show it.

    CRLF and CR become newlines. Other control characters, which could control a terminal, and halves of surrogate
    pairs, which have no encoding, become U+FFFD, the replacement character. Tabs, newlines and every printable
    character stay, and so do joiners, marks of direction and trailing spaces.

    Example:
        >>> plain_text("a cat\\r\\n\\x1b[31ma dog\\r")
        'a cat\\n�[31ma dog\\n'
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub(_REPLACEMENT, lines)


def is_unsafe(text: str) -> bool:
    """Whether a text has a character that is not allowed in a map.

    Example:
        >>> [is_unsafe(text) for text in ("a cat\\n", "a\\x00", "\\x1b[31m")]
        [False, True, True]
    """
    return _UNSAFE.search(text) is not None


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it consists of white space, control characters, fillers and marks without a letter.

    Example:
        >>> [is_blank(text) for text in ("", "\u200b \u3164", "\ufe0f", "a")]
        [True, True, True, False]
    """
    return all(
        character in _FILLERS or unicodedata.category(character) in ("Cc", "Cf", "Mn", "Zl", "Zp", "Zs")
        for character in text
    )


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters, which ends with ``...`` if something was cut off.

    Example:
        >>> shorten("a lighthouse\\non a cliff", 20)
        'a lighthouse on ...'
        >>> shorten("a" * 61, 20)
        'aaaaaaaaaaaaaaaaa...'
    """
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    words = line[: width - 3].rpartition(" ")[0]
    # A single long word, or text without spaces, is cut anywhere.
    return f"{words} ..." if len(words) > width // 2 else f"{line[: width - 3]}..."
