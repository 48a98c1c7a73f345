"""Sites: which outputs of a model are read and steered, their layouts, and how many of them fired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

Layout = Literal["vector", "tokens", "spatial"]
End = Literal["leading", "trailing"]


@dataclass(frozen=True)
class Segment:
    """The leading or the trailing tokens of a stream that joins two others, such as those of text and picture.

    Where one ends and the other begins depends on the prompt and on the size of the picture. A gauge measures it at
    each call of the model: another submodule, which runs before and returns the tokens of one of the two alone.

    Attributes:
        end: which of the two; segments of one end are equal, however they are measured.
        gauge: dotted name of that submodule, in the same component.
        output: index of its output; None for a lone tensor.
        measures: which of the two it returns.
    """

    end: End
    gauge: str = field(compare=False)
    output: int | None = field(compare=False)
    measures: End = field(compare=False)

    def of(self, tokens: int, measured: int) -> slice:
        """The tokens of the segment.

        Args:
            tokens: number of tokens in the stream.
            measured: number of tokens that the gauge returned.

        Example:
            >>> Segment("trailing", "text_in", None, "leading").of(tokens=20, measured=4)
            slice(4, 20, None)
        """
        start = measured if self.measures == "leading" else tokens - measured
        return slice(0, start) if self.end == "leading" else slice(start, tokens)


@dataclass(frozen=True)
class Site:
    """One output tensor of one submodule that is read and steered.

    Attributes:
        component: part of the pipeline, such as ``language_model`` or ``diffusion_model``.
        name: dotted name of the submodule inside the component.
        output: index into the outputs of a submodule that returns several; None for a lone tensor.
        layout: ``vector`` ``[rows, channels]``, ``tokens`` ``[rows, tokens, channels]`` or
            ``spatial`` ``[rows, channels, height, width]``.
        channels: how many.
        segment: the tokens that are read and moved; None for all of them.
    """

    component: str
    name: str
    output: int | None
    layout: Layout
    channels: int
    segment: Segment | None = None

    @cached_property
    def key(self) -> str:
        """``component/name``, with ``#index`` where the submodule has several outputs, and ``@end`` for a segment."""
        index = "" if self.output is None else f"#{self.output}"
        return f"{self.component}/{self.name}{index}" + (f"@{self.segment.end}" if self.segment else "")


def matches(patterns: Sequence[str], key: str) -> bool:
    """Whether a site key fits one of the fnmatch patterns, with or without its output index and segment.

    A lone output also matches ``#0``.

    Example:
        >>> matches(["*.mlp"], "model/layers.0.mlp@leading"), matches(["*.mlp@trailing"], "model/layers.0.mlp@leading")
        (True, False)
    """
    place = key.partition("@")[0]
    name, index = place.partition("#")[::2]
    return any(fnmatchcase(text, p) for p in patterns for text in (key, place, name, f"{name}#{index or 0}"))


@dataclass(frozen=True)
class Coverage:
    """How many sites of a map were found in the model, and how many fired.

    Example:
        >>> print(Coverage(("toy/norm", "toy/head"), missing=("toy/head",), fires={"toy/norm": 3}))
        1 of 2 sites fired, 1 not found (first: toy/head)

    Attributes:
        expected: keys of all sites of the map, in the components that are connected.
        missing: keys that the model does not have.
        fires: how often each found site fired. Runs inside a compiled graph are not counted individually: each block
            and strength with at least one run counts as one.
        unconnected: components of the map that no model was given for.
    """

    expected: tuple[str, ...]
    missing: tuple[str, ...]
    fires: Mapping[str, int]
    unconnected: tuple[str, ...] = ()

    @property
    def fired(self) -> tuple[str, ...]:
        return tuple(key for key, count in self.fires.items() if count)

    @property
    def silent(self) -> tuple[str, ...]:
        """Found, but not run."""
        return tuple(key for key, count in self.fires.items() if not count)

    def __str__(self) -> str:
        text = f"{len(self.fired)} of {len(self.expected)} sites fired"
        if self.missing:
            text += f", {len(self.missing)} not found (first: {self.missing[0]})"
        if self.silent:
            text += f", {len(self.silent)} never ran (first: {self.silent[0]})"
        if self.unconnected:
            text += f", {' and '.join(self.unconnected)} not connected"
        return text
