"""Finds where a model joins two streams of tokens into one, such as those of text and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .sites import End, Segment

_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


class Output(NamedTuple):
    """A tensor that a submodule has returned: ``[rows, tokens, channels]``."""

    component: str
    name: str
    output: int | None
    tokens: int
    channels: int
    address: int


class _Join(NamedTuple):
    """One joined stream.

    Attributes:
        tokens, channels: its size.
        sizes: tokens of the leading part and of all others.
        addresses: of these parts; 0 if not known.
        outputs: how many outputs of submodules came before it.
    """

    tokens: int
    channels: int
    sizes: tuple[int, int]
    addresses: tuple[int, int]
    outputs: int


class JoinWatch(TorchFunctionMode):
    """Notes, while it is entered, every tensor that is joined from parts along its tokens.

    A model joins streams by a concatenation, or by writing them into the slices of one tensor.

    Example:
        >>> with JoinWatch() as watch:
        ...     text, picture = torch.ones(1, 3, 8), torch.ones(1, 4, 8)
        ...     watch.note("model", "text_in", None, text)
        ...     joined = torch.cat([text, picture], 1)
        >>> [segment.of(7, measured=3) for segment in watch.segments("model", 7, 8)]
        [slice(0, 3, None), slice(3, 7, None)]
    """

    def __init__(self) -> None:
        super().__init__()
        self._outputs: list[Output] = []
        self._joins: list[_Join] = []

    @property
    def count(self) -> int:
        """How many joins have been noted so far."""
        return len(self._joins)

    def note(self, component: str, name: str, output: int | None, tensor: Tensor) -> None:
        """Note a tensor that a submodule returns; others are joined only later."""
        if tensor.ndim == 3:
            _, tokens, channels = tensor.shape
            self._outputs.append(Output(component, name, output, tokens, channels, tensor.data_ptr()))

    def segments(self, component: str, tokens: int, channels: int, before: int | None = None) -> tuple[Segment, ...]:
        """The two segments of a joined stream; none if the stream is not joined, or if no submodule measures them.

        Args:
            component: whose submodules may measure them.
            tokens, channels: size of the stream.
            before: the number of joins to consider, the latest first; by default all.
        """
        for join in reversed(self._joins[:before]):
            if (join.tokens, join.channels) == (tokens, channels):
                return next(self._divisions(component, join), ())
        return ()

    def _divisions(self, component: str, join: _Join) -> Iterator[tuple[Segment, Segment]]:
        """Ways to measure a join, the most reliable first: by the part itself, then by tensors of its size."""
        outputs = [output for output in self._outputs[: join.outputs] if output.component == component][::-1]
        for is_part in (_is_itself, _has_its_size, _has_its_tokens):
            for number, end in enumerate(cast("tuple[End, End]", get_args(End))):
                for output in outputs:
                    if output.tokens == join.sizes[number] and is_part(output, join, number):
                        yield (
                            Segment("leading", output.name, output.output, end),
                            Segment("trailing", output.name, output.output, end),
                        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CONCATENATIONS:
            self._note_concatenation(result, *args, **(kwargs or {}))
        elif func is Tensor.__setitem__:
            self._note_slice(*args)
        return result

    def _note_concatenation(self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> None:
        # Some models join the streams of each sample separately, as [tokens, channels].
        if result.ndim not in (2, 3) or dim % result.ndim != result.ndim - 2 or len(tensors) < 2:
            return
        leading = tensors[0].shape[-2]
        rest = tensors[1].data_ptr() if len(tensors) == 2 else 0
        self._add(result, leading, (tensors[0].data_ptr(), rest))

    def _note_slice(self, tensor: Tensor, key: object, value: object) -> None:
        parts = cast("tuple[object, ...]", key) if isinstance(key, tuple) else (key,)
        tokens = parts[1] if len(parts) > 1 else None
        if tensor.ndim != 3 or not isinstance(tokens, slice) or not isinstance(value, Tensor):
            return
        start, stop, step = cast("slice[int, int, int]", tokens).indices(tensor.shape[1])
        if step == 1 and start == 0:
            self._add(tensor, stop, (value.data_ptr(), 0))
        elif step == 1 and stop == tensor.shape[1]:
            self._add(tensor, start, (0, value.data_ptr()))

    def _add(self, joined: Tensor, leading: int, addresses: tuple[int, int]) -> None:
        tokens, channels = joined.shape[-2:]
        if 0 < leading < tokens:
            sizes = leading, tokens - leading
            self._joins.append(_Join(tokens, channels, sizes, addresses, len(self._outputs)))


def _is_itself(output: Output, join: _Join, part: int) -> bool:
    return output.address == join.addresses[part]


def _has_its_size(output: Output, join: _Join, part: int) -> bool:
    return output.channels == join.channels


def _has_its_tokens(output: Output, join: _Join, part: int) -> bool:
    return True
