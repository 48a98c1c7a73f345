"""One validator for each kind of value in the header of a map file; all raise ValueError with the reason."""

from __future__ import annotations

import base64
import binascii
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from ..errors import MapError
from ..levels import check_levels
from ..text import is_unsafe
from .format import MAX_COUNT, MAX_COVER_BYTES, MAX_NAME, MAX_NUMBER, MAX_WHOLE

Value = TypeVar("Value")
Validator = Callable[[str, object], Any]


def text(name: str, value: object) -> str:
    """A text without characters that could control a terminal.

    Example:
        >>> text("title", "calm")
        'calm'
    """
    if not isinstance(value, str) or is_unsafe(value):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a plain text")
    return value


def identifier(name: str, value: object) -> str:
    """The name of a component or of a submodule: dotted, and nothing that could be a path or control a terminal.

    Example:
        >>> identifier("name", "layers.0.norm")
        'layers.0.norm'
        >>> identifier("name", "../layers")
        Traceback (most recent call last):
        ...
        ValueError: name is '../layers', not a name of at most 500 characters, without slashes and empty parts
    """
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_NAME:
        is_name = False
    else:
        is_name = all(value.split(".")) and not any(slash in value for slash in "/\\")
    if not is_name:
        rule = f"not a name of at most {MAX_NAME} characters, without slashes and empty parts"
        raise ValueError(f"{name} is {reprlib.repr(value)}, {rule}")
    return cast("str", value)


def word(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """One of the allowed words.

    Example:
        >>> word("order", "causal", ("causal", "simultaneous"))
        'causal'
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not one of {', '.join(allowed)}")
    return value


def integer(name: str, value: object) -> int:
    """A whole number from -2^64 to 2^64; True and False are refused.

    Example:
        >>> integer("seed", -3)
        -3
    """
    if type(value) is not int:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a whole number")
    if abs(value) > MAX_WHOLE:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not from -2^64 to 2^64")
    return value


def count(name: str, value: object) -> int:
    """A whole number from 0 to 2^53 - 1.

    Example:
        >>> count("fallbacks", 2)
        2
    """
    if not 0 <= integer(name, value) <= MAX_COUNT:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not from 0 to 2^53 - 1")
    return cast("int", value)


def number(name: str, value: object) -> float:
    """A number in the range of float32.

    Example:
        >>> number("effect", 1)
        1.0
    """
    try:
        finite = type(value) in (int, float) and math.isfinite(float(cast("float", value)))
    except OverflowError:
        finite = False
    if not finite or abs(cast("float", value)) > MAX_NUMBER:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a finite number of float32")
    return float(cast("float", value))


def items(name: str, value: object, each: Callable[[str, object], Value]) -> tuple[Value, ...]:
    """A list of values of one kind.

    Example:
        >>> items("notes", ["a", "b"], text)
        ('a', 'b')
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a list")
    item_name = f"an item of {name}"
    # From a list, which is faster than from a generator.
    return tuple([each(item_name, item) for item in cast("list[object]", value)])


def table(name: str, value: object, each: Callable[[str, object], Value]) -> dict[str, Value]:
    """A JSON object whose values are of one kind.

    Example:
        >>> table("versions", {"torch": "2.13"}, text)
        {'torch': '2.13'}
    """
    return {
        text(f"a name in {name}", key): each(f"{reprlib.repr(key)} in {name}", item)
        for key, item in record(name, value).items()
    }


def record(name: str, value: object) -> Mapping[str, object]:
    """A JSON object.

    Example:
        >>> record("base", {"toy": 1})["toy"]
        1
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a table")
    return cast("dict[str, object]", value)


def strength_range(name: str, value: object) -> tuple[float, float]:
    """The lower and the upper end of the recommended strengths.

    Example:
        >>> strength_range("range", [-1, 1])
        (-1.0, 1.0)
    """
    ends = items(name, value, number)
    if len(ends) != 2:
        raise ValueError(f"{name} has {len(ends)} ends, not two")
    return ends[0], ends[1]


def levels(name: str, value: object) -> tuple[float, ...]:
    """Noise levels, the noisiest first.

    Example:
        >>> levels("levels", [0.9, 0.5])
        (0.9, 0.5)
    """
    found = items(name, value, number)
    try:
        check_levels(found)
    except MapError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return found


def cover(name: str, value: object) -> bytes:
    """The bytes of a small JPEG picture, of a list of pictures in base64; empty if the list is.

    Example:
        >>> cover("cover", [])
        b''
    """
    pictures = items(name, value, text)
    try:
        data = base64.b64decode(pictures[0], validate=True) if pictures else b""
    except binascii.Error as error:
        raise ValueError(f"{name} is not base64") from error
    return jpeg(name, data)


def jpeg(name: str, value: object) -> bytes:
    """The bytes of a small JPEG picture; empty for none.

    Example:
        >>> jpeg("cover", b"")
        b''
    """
    is_jpeg = isinstance(value, (bytes, bytearray)) and (not value or value.startswith(b"\xff\xd8"))
    if not is_jpeg or len(cast("bytes", value)) > MAX_COVER_BYTES:
        raise ValueError(f"{name} is not a JPEG picture of at most {MAX_COVER_BYTES >> 10} KiB")
    return bytes(cast("bytes", value))
