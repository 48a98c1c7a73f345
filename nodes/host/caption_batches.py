"""Runs several captions through a text encoder as one batch, while the host encodes one caption after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any

import comfy.sd1_clip
import torch
from torch import Tensor

# A section: the ids of its tokens.
_Ids = tuple[int, ...]
# What changes between two calls of an encoder for one caption, as for the lyrics of a song.
_OPTIONS = "layer", "layer_idx", "return_projected_pooled"


@contextmanager
def run_together(sections: Mapping[Any, Iterable[Sequence[Any]]]) -> Generator[None, None, None]:
    """Inside the block, the first call of a text encoder also runs the sections of the other captions.

    Later calls get their own rows of that run. Whatever the host does before and after, such as applying weights,
    joining sections, or removing a template, it does for each caption alone. Sections with other things than ids of
    tokens, and encoders that run in their own way, are left to the host.

    Args:
        sections: by text encoder of the host, all that it will read, as lists of tokens.
    """
    kind = comfy.sd1_clip.SDClipModel
    with ExitStack() as stack:
        for part, own in sections.items():
            alike = all(getattr(type(part), name, None) is getattr(kind, name) for name in ("encode", "forward"))
            if alike and not {"encode", "forward"} & vars(part).keys():
                known = [ids for section in own if (ids := _ids(section)) is not None]
                vars(part)["encode"] = _Shared(part, part.encode, known)
                stack.callback(vars(part).pop, "encode")
        yield


class _Shared:
    """Stands in for the ``encode`` of a text encoder.

    Args:
        part: the text encoder.
        encode: its method.
        sections: all that may be asked for.
    """

    def __init__(self, part: Any, encode: Callable[[Any], Any], sections: Iterable[_Ids]) -> None:
        self._part = part
        self._encode = encode
        self._sections = dict.fromkeys(sections)
        self._results: dict[tuple[str, _Ids], Any] = {}

    def __call__(self, tokens: Sequence[Sequence[Any]]) -> Any:
        asked = [_ids(section) for section in tokens]
        # Weights add a section for the empty prompt, which is not known.
        wanted = [ids for ids in asked if ids in self._sections]
        if len(wanted) < len(tokens) or not wanted:
            return self._encode(tokens)
        options = repr([getattr(self._part, name, None) for name in _OPTIONS])
        missing = {len(ids) for ids in wanted if (options, ids) not in self._results}
        for length in missing:
            alike = [ids for ids in self._sections if len(ids) == length]
            result = self._encode([list(ids) for ids in alike])
            if any(tensor.shape[0] != len(alike) for tensor in _tensors(result)):
                self._sections.clear()
                return self._encode(tokens)
            rows = _rows(result, len(alike))
            self._results.update(((options, ids), row) for ids, row in zip(alike, rows, strict=True))
        return _joined([self._results[options, ids] for ids in wanted])


def _ids(section: Sequence[Any]) -> _Ids | None:
    """The ids of tokens; None if some are something else, such as embeddings."""
    return tuple(int(token) for token in section) if all(isinstance(token, Integral) for token in section) else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _rows(value: Any, count: int) -> list[Any]:
    """What an encoder returns for a batch, as the same for each row."""
    if isinstance(value, Tensor):
        return list(value.split(1))
    if isinstance(value, tuple):
        return list(zip(*(_rows(item, count) for item in value), strict=True))
    if isinstance(value, dict):
        parts = {key: _rows(item, count) for key, item in value.items()}
        return [{key: part[number] for key, part in parts.items()} for number in range(count)]
    return [value] * count


def _joined(rows: Sequence[Any]) -> Any:
    """The opposite of `_rows`. Tensors are copies, since the host changes them in place to apply weights."""
    first = rows[0]
    if isinstance(first, Tensor):
        return torch.cat(list(rows))
    if isinstance(first, tuple):
        return tuple(_joined(items) for items in zip(*rows, strict=True))
    if isinstance(first, dict):
        return {key: _joined([row[key] for row in rows]) for key in first}
    return first
