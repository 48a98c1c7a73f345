"""Sites: which outputs of a model are read and steered, their layouts, and how many of them fired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Layout = Literal["vector", "tokens", "spatial"]


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
    """

    component: str
    name: str
    output: int | None
    layout: Layout
    channels: int

    @property
    def key(self) -> str:
        """``component/name``, with ``#index`` where the submodule has several outputs."""
        return f"{self.component}/{self.name}" + ("" if self.output is None else f"#{self.output}")


def matches(patterns: Sequence[str], key: str) -> bool:
    """Whether a site key fits one of the fnmatch patterns, with or without its output index.

    A lone output also matches ``#0``.
    """
    name, index = key.partition("#")[::2]
    return any(fnmatchcase(text, p) for p in patterns for text in (key, name, f"{name}#{index or 0}"))


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
