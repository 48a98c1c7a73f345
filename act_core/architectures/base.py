"""The record of one family of models: everything the project knows about it, in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Presets = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Architecture:
    """One family of models, as one library builds it.

    Attributes:
        name: what maps and messages call it, and the first of the kinds that it is recognised by.
        presets: by preset name, fnmatch patterns on the names of submodules; an output index may follow after ``#``.
        auto: presets that ``auto`` selects, chosen by measurement.
        aliases: further kinds it is recognised by: class names, also of base classes, or the ``model_type`` of a
            configuration.
        marker: regular expression; an otherwise unknown model with a submodule of such a name is built alike.
        foldable: presets of which every site can be folded into weights: norms with parameters, and linear layers
            with a bias.
        elsewhere: by the name of the record of the same model in another library, the names of the same parts there.
            Only parts that return the same tensor are listed. ``{}`` stands for the number of a block.
    """

    name: str
    presets: Presets = field(default_factory=dict[str, tuple[str, ...]])
    auto: tuple[str, ...] = ("attention",)
    aliases: tuple[str, ...] = ()
    marker: str = ""
    foldable: tuple[str, ...] = ()
    elsewhere: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Everything that the family is recognised by."""
        return (self.name, *self.aliases)

    def has_marker(self, submodule: str) -> bool:
        """Whether a submodule of this name marks a model that is built like this family."""
        return bool(self.marker) and re.search(self.marker, submodule) is not None

    def patterns(self, preset: str) -> tuple[str, ...]:
        """Patterns for a preset, ``auto`` or ``all``; none for a preset that only other families have."""
        chosen = {"auto": self.auto, "all": tuple(self.presets)}.get(preset, (preset,))
        return tuple(pattern for name in chosen for pattern in self.presets.get(name, ()))


def numbered(path: str) -> tuple[str, ...]:
    """Patterns for a numbered block itself, not for what is inside it (fnmatch has no 'digits only').

    Example:
        >>> numbered("blocks.")
        ('blocks.[0-9]', 'blocks.[0-9][0-9]', 'blocks.[0-9][0-9][0-9]')
    """
    return tuple(path + "[0-9]" * digits for digits in (1, 2, 3))
