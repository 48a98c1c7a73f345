"""Finds where a model joins two streams of tokens into one, such as those of text and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .sites import End, Segment

_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
# They take the shape, dtype or device of a tensor, but none of its values.
_EMPTY = {"new_empty", "new_full", "new_ones", "new_zeros", "empty_like", "full_like", "ones_like", "zeros_like"}


class _Output(NamedTuple):
    """Tokens that a submodule has returned."""

    component: str
    name: str
    output: int | None
    tokens: int


class _Join(NamedTuple):
    """How a stream is joined.

    Attributes:
        sizes: tokens of the leading and of the trailing part.
        sources: the latest output of a submodule from which each part was made, token by token; None if not known.
        outputs: how many outputs of submodules came before it.
        filled: which of the parts have been written; a slice that has not is not a stream, but padding.
    """

    sizes: tuple[int, int]
    sources: tuple[_Output | None, _Output | None]
    outputs: int
    filled: tuple[bool, bool] = (True, True)

    @property
    def tokens(self) -> int:
        return sum(self.sizes)


class _Origin(NamedTuple):
    """What a tensor was made from.

    Attributes:
        constant: whether only weights went into it, as into tokens for padding.
        source: the latest output of a submodule with the same tokens; None if there is none.
        join: of the stream; None if it is not joined.
    """

    constant: bool
    source: _Output | None = None
    join: _Join | None = None


class JoinWatch(TorchFunctionMode):
    """Follows all tensors, while it is entered, to know which of them hold two joined streams.

    A model joins streams by a concatenation, or by writing them into the slices of one tensor. Tokens that are weights,
    such as padding, are not a stream.

    Args:
        roots: of the components.

    Example:
        >>> text_in, text, picture = nn.Linear(8, 8), torch.ones(1, 3, 8), torch.ones(1, 4, 8)
        >>> with JoinWatch([text_in]) as watch:
        ...     text = text_in(text)
        ...     watch.note("model", "text_in", None, text)
        ...     joined = torch.cat([text, picture], 1).tanh()
        >>> [segment.of(7, measured=3) for segment in watch.segments("model", joined)]
        [slice(0, 3, None), slice(3, 7, None)]
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        super().__init__()
        self._buffers = {id(buffer) for root in roots for buffer in root.buffers()}
        self._origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._outputs: list[_Output] = []
        self._joins: list[_Join] = []

    def note(self, component: str, name: str, index: int | None, tensor: Tensor) -> None:
        """Note a tensor ``[rows, tokens, channels]`` that a submodule returns."""
        if tensor.ndim == 3:
            output = _Output(component, name, index, tensor.shape[1])
            self._outputs.append(output)
            self._origins[tensor] = self._origin(tensor)._replace(source=output)

    def segments(self, component: str, tensor: Tensor) -> tuple[Segment, ...]:
        """The two segments of a tensor ``[rows, tokens, channels]``; none if it is not joined, or cannot be measured.

        Args:
            component: whose submodules may measure them.
            tensor: returned by one of its submodules.
        """
        join = self._origin(tensor).join
        if tensor.ndim != 3 or join is None or join.tokens != tensor.shape[1] or not all(join.filled):
            return ()
        return next(self._measured(component, join), ())

    def _measured(self, component: str, join: _Join) -> Iterator[tuple[Segment, Segment]]:
        """Ways to measure a join, the most reliable first: by what a part was made from, then by its size."""
        before = [output for output in self._outputs[: join.outputs][::-1] if output.component == component]
        alike = before if join.sizes[0] != join.sizes[1] else []
        for outputs in (join.sources, alike):
            for output in outputs:
                if output is None or not self._is_steady(output):
                    continue
                for size, end in zip(join.sizes, cast("tuple[End, End]", get_args(End)), strict=True):
                    is_part = output is join.sources[end == "trailing"] if outputs is join.sources else True
                    if is_part and output.tokens == size and output.component == component:
                        place = output.name, output.output, end
                        yield Segment("leading", *place), Segment("trailing", *place)

    def _is_steady(self, output: _Output) -> bool:
        """Whether a submodule returns the same number of tokens whenever it runs."""
        calls = {other.tokens for other in self._outputs if other[:3] == output[:3]}
        return len(calls) == 1

    def _origin(self, tensor: Tensor) -> _Origin:
        if tensor in self._origins:
            return cast("_Origin", self._origins[tensor])
        return _Origin(constant=isinstance(tensor, nn.Parameter) or id(tensor) in self._buffers)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__setitem__:
            self._follow_slice(*args)
            return result
        if func in _CONCATENATIONS:
            origins = self._concatenated(*args, **(kwargs or {}))
        elif getattr(func, "__name__", "") in _EMPTY:
            origins = []
        else:
            origins = [self._origin(tensor) for tensor in _tensors([*args, *(kwargs or {}).values()])]
        if func is nn.functional.scaled_dot_product_attention:
            origins = origins[:1]  # its tokens are those of the queries
        for tensor in _tensors([result]):
            self._origins[tensor] = _inherited(origins, tensor.shape[1:])
        return result

    def _concatenated(
        self, tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None, **_: Any
    ) -> list[_Origin]:
        """What a concatenation is made from: its parts, or if these are two streams, their join."""
        parts = [part for part in tensors if part.numel()]
        origins = [self._origin(part) for part in parts]
        streams = [number for number, origin in enumerate(origins) if not origin.constant]
        rank = parts[0].ndim if parts else 0
        along = (dim if axis is None else axis) % max(1, rank)
        # Some models join the streams of each sample separately, as [tokens, channels], or inside an attention.
        if along not in {2: (0,), 3: (1,), 4: (1, 2)}.get(rank, ()):
            return origins
        if len(streams) != 2:
            return [_Origin(origin.constant) for origin in origins]
        leading = sum(part.shape[along] for part in parts[: streams[1]])
        trailing = sum(part.shape[along] for part in parts[streams[1] :])
        sources = (origins[0].source, origins[1].source) if len(parts) == 2 else (None, None)
        if sources == (None, None):
            # An attention may take a stream apart, also elsewhere, and join it again.
            known = next((join for join in self._joins[::-1] if join.tokens == leading + trailing), None)
            if known is not None:
                return [_Origin(constant=False, join=known)]
        join = _Join((leading, trailing), sources, len(self._outputs))
        self._joins.append(join)
        return [_Origin(constant=False, join=join)]

    def _follow_slice(self, tensor: Tensor, key: object, value: object) -> None:
        parts = cast("tuple[object, ...]", key) if isinstance(key, tuple) else (key,)
        tokens = parts[1] if len(parts) > 1 else None
        if not isinstance(value, Tensor):
            return
        origin, written = self._origin(tensor), self._origin(value)
        join = origin.join
        if tensor.ndim == 3 and isinstance(tokens, slice) and not written.constant:
            join = self._filled(join, tensor.shape[1], cast("slice[int, int, int]", tokens), written.source)
        self._origins[tensor] = origin._replace(constant=origin.constant and written.constant, join=join)

    def _filled(
        self, join: _Join | None, length: int, tokens: slice[int, int, int], source: _Output | None
    ) -> _Join | None:
        """A join after one of its parts is written into a slice of a stream."""
        start, stop, step = tokens.indices(length)
        part, leading = (0, stop) if start == 0 else (1, start)
        if step != 1 or not 0 < leading < length or (part and stop != length):
            return join
        if join is None or join.sizes[0] != leading:
            join = _Join((leading, length - leading), (None, None), 0, (False, False))
        sources, filled = list(join.sources), list(join.filled)
        sources[part], filled[part] = source, True
        return join._replace(
            sources=(sources[0], sources[1]), filled=(filled[0], filled[1]), outputs=len(self._outputs)
        )


def _inherited(origins: Sequence[_Origin], sizes: Sequence[int]) -> _Origin:
    """The origin of a tensor of these sizes that is made from others: it keeps what has as many tokens."""
    return _Origin(
        all(origin.constant for origin in origins),
        next((o.source for o in origins if o.source and o.source.tokens in sizes), None),
        next((o.join for o in origins if o.join and o.join.tokens in sizes), None),
    )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of a function."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(cast("Sequence[Any]", value))
