"""Checks the pickle in a file of `torch.save` before torch reads it: tensors in a few lists and dictionaries.

`torch.load` with ``weights_only=True`` runs no code, but follows a pickle wherever it leads: a few bytes let it
allocate gigabytes (``bytearray(10**10)``), build a tuple of 2^100 items out of a hundred references, or hash one that
is nested so deeply that the process crashes. So the opcodes are replayed first, on a stack that holds only the kind and
the depth of each item.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ..errors import AGAIN, MapFileError

# The protocol that torch.save writes.
_PROTOCOL = 2
# A vector by layer in a dictionary has depth 2, a hook of apple/ml-act 3, and the state of a module 4.
_MAX_DEPTH = 8
# torch.save writes about forty opcodes and 200 bytes for each tensor.
_MAX_OPCODES = 100_000
_MAX_BYTES = 1 << 20
_STORAGES = frozenset(
    f"torch {name}Storage"
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
_REBUILDERS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
_ORDERED = "collections OrderedDict"
_GLOBALS = frozenset([_ORDERED, *_REBUILDERS, *_STORAGES])
_ALONE = "save its tensors alone."
_TOO_LONG = "it describes far more tensors than a steering vector has."


@dataclass(slots=True)
class _Item:
    """An item on the stack.

    Attributes:
        kind: ``text``, ``number``, ``tuple``, ``list``, ``dict``, ``storage``, ``tensor``, or the name of a global.
        depth: levels of tuples, lists and dictionaries, itself included.
        parts: kinds of the items of a tuple.
        shared: whether it was referred to again; then nothing may be added, or depths around it would be wrong.
    """

    kind: str
    depth: int = 0
    parts: tuple[str, ...] = ()
    shared: bool = False


_TEXT, _NUMBER, _STORAGE, _TENSOR = map(_Item, ("text", "number", "storage", "tensor"))


def check_pickle(data: bytes) -> None:
    """Check that a pickle holds only tensors, texts and numbers, in shallow tuples, lists and dictionaries.

    Raises:
        MapFileError: it holds something else, or more than any steering vector, or is damaged.

    Example:
        >>> check_pickle(b"\\x80\\x02].")
        >>> check_pickle(b"\\x80\\x02\\x94.")
        Traceback (most recent call last):
        ...
        act_core.errors.MapFileError: it holds more than tensors (MEMOIZE); save its tensors alone.
    """
    if len(data) > _MAX_BYTES:
        raise MapFileError(_TOO_LONG)
    replay = _Replay()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            replay.step(opcode.name, argument)
    except MapFileError:
        raise
    except (ValueError, LookupError, struct.error, OverflowError) as error:
        raise MapFileError(f"it is damaged; {AGAIN}") from error


class _Replay:
    """The stack of an unpickler; a mark starts a new one above it."""

    def __init__(self) -> None:
        self.stack: list[_Item] = []
        self.below: list[list[_Item]] = []
        self.memo: dict[object, _Item] = {}
        self.steps = 0

    def step(self, name: str, argument: object) -> None:
        self.steps += 1
        if self.steps > _MAX_OPCODES:
            raise MapFileError(_TOO_LONG)
        match name:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(_shared(self.memo[argument]))
            case "BINUNICODE":
                self.stack.append(_TEXT)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append(_NUMBER)
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                self.stack.append(_Item(name.removeprefix("EMPTY_").lower(), 1))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.stack.pop() for _ in range(int(name[-1]))]
                self.stack.append(_tuple(items[::-1]))
            case "TUPLE":
                items = self._since_mark()  # first, since it replaces the stack
                self.stack.append(_tuple(items))
            case "APPEND":
                self._add_to("list", [self.stack.pop()])
            case "APPENDS":
                self._add_to("list", self._since_mark())
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self._add_to("dict", [key, value])
            case "SETITEMS":
                self._add_to("dict", self._since_mark())
            case "BINPERSID":
                self._load(self.stack.pop())
            case "REDUCE":
                arguments = self.stack.pop()
                self.stack.append(_called(self.stack.pop(), arguments))
            case "BUILD":
                # The attributes of an OrderedDict; torch.save keeps the metadata of a module there.
                state = self.stack.pop()
                if state.kind != "dict":
                    raise MapFileError(f"it holds more than tensors (BUILD); {_ALONE}")
                self._add_to("dict", [_TEXT, state])
            case "GLOBAL":
                if argument not in _GLOBALS:
                    reason = f"{str(argument)[:60]!r}), which could run code"
                    raise MapFileError(f"it holds more than tensors ({reason}; {_ALONE}")
                self.stack.append(_Item(cast("str", argument)))
            case "PROTO":
                if argument != _PROTOCOL:
                    raise MapFileError(
                        f"its pickle has protocol {argument}; save it with torch.save as it is by default."
                    )
            case "STOP":
                self.stack.pop()
            case _:
                raise MapFileError(f"it holds more than tensors ({name}); {_ALONE}")

    def _since_mark(self) -> list[_Item]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _add_to(self, kind: str, items: Sequence[_Item]) -> None:
        """Add items to the list or dictionary on top of the stack; those of a dictionary are keys and values."""
        target = self.stack[-1]
        if target.kind != kind or target.shared:
            raise MapFileError(f"its lists and dictionaries are not built as torch.save does it; {_ALONE}")
        if kind == "dict" and (len(items) % 2 or any(key.kind not in ("text", "number") for key in items[::2])):
            raise MapFileError(f"it has a dictionary whose keys are not texts or numbers; {_ALONE}")
        target.depth = max(target.depth, _depth_around(items))

    def _load(self, place: _Item) -> None:
        """Push a storage, which is named by the word 'storage', its type, its name, its device and its length."""
        kinds = place.parts
        if len(kinds) != 5 or kinds[1] not in _STORAGES or (kinds[0], *kinds[2:]) != ("text", "text", "text", "number"):
            raise MapFileError(f"it names a part of the file in another way than torch.save; {_ALONE}")
        self.stack.append(_STORAGE)


def _shared(item: _Item) -> _Item:
    # torch.save refers to texts, types, storages, tensors, and lists of these. Deeper references would let a file of a
    # kilobyte describe more items than fit into memory.
    if item.depth > 1:
        raise MapFileError(f"it refers to one nested list or dictionary several times; {_ALONE}")
    if item.depth:
        item.shared = True
    return item


def _tuple(items: Sequence[_Item]) -> _Item:
    return _Item("tuple", _depth_around(items), tuple(item.kind for item in items))


def _depth_around(items: Sequence[_Item]) -> int:
    depth = 1 + max((item.depth for item in items), default=0)
    if depth > _MAX_DEPTH:
        raise MapFileError(f"its lists and dictionaries are nested {depth} levels deep, as in no steering vector.")
    return depth


def _called(function: _Item, arguments: _Item) -> _Item:
    """What a call returns: an empty dictionary, or a tensor, whose arguments torch checks."""
    if function.kind == _ORDERED and (arguments.kind, arguments.parts) == ("tuple", ()):
        return _Item("dict", 1)
    if function.kind in _REBUILDERS and arguments.kind == "tuple":
        return _TENSOR
    raise MapFileError(f"it holds more than tensors (REDUCE); {_ALONE}")
