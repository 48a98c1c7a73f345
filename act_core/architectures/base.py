"""The record of one model family: everything the library knows about it, in one place."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from .shared_names import SharedNames

Presets = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Architecture:
    """One family of models, as one library builds it.

    Attributes:
        name: the name in maps and messages, and the first of the kinds that the family is recognised by.
        presets: by preset name, fnmatch patterns on the names of submodules; an output index may follow after ``#``.
        auto: presets that ``auto`` selects, chosen by measurement.
        aliases: further kinds it is recognised by: class names, also of base classes, or the ``model_type`` of a
            configuration.
        marker: regular expression; an unknown model with a submodule of such a name may be built alike, see
            `is_built_alike`.
        exclusion: regular expression; a model with a submodule of such a name is not built alike.
        foldable: presets of which every site can be folded into weights: a norm or linear layer with a bias.
        built_by: the library that uses these names, if another library names the parts of the same model differently.
        block: name of a block of a causal language model in transformers; ``{}`` stands for its number.
        shared: names of the same parts there. The records of both libraries hold the same object.

    Example:
        >>> toy = Architecture("toy", {"norms": ("*.norm",), "mlp": ("*.fc2",)}, auto=("mlp",))
        >>> toy.patterns("auto"), toy.patterns("all"), toy.patterns("attention")
        (('*.fc2',), ('*.norm', '*.fc2'), ())
    """

    name: str
    presets: Presets = field(default_factory=dict[str, tuple[str, ...]])
    auto: tuple[str, ...] = ("attention",)
    aliases: tuple[str, ...] = ()
    marker: str = ""
    exclusion: str = ""
    foldable: tuple[str, ...] = ()
    built_by: str = ""
    block: str = ""
    shared: tuple[SharedNames, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """All names by which the family is recognised."""
        return (self.name, *self.aliases)

    def patterns(self, preset: str) -> tuple[str, ...]:
        """Patterns for a preset, ``auto`` or ``all``; none for a preset that only other families have."""
        chosen = {"auto": self.auto, "all": tuple(self.presets)}.get(preset, (preset,))
        return tuple(pattern for name in chosen for pattern in self.presets.get(name, ()))

    def is_built_alike(self, submodules: Sequence[str]) -> bool:
        """Whether a model without a record has the same structure as this family.

        It matches the marker but not the exclusion, and every preset finds the same number of parts in each of its
        layers. A hybrid, in which only some layers have attention, therefore does not qualify.

        Args:
            submodules: dotted names of all submodules of the model.

        Example:
            >>> toy = Architecture("toy", {"mlp": ("*.fc2",)}, marker=r"\\.fc2$")
            >>> toy.is_built_alike(["layers.0", "layers.0.fc2", "layers.1", "layers.1.fc2"])
            True
            >>> toy.is_built_alike(["layers.0", "layers.0.fc2", "layers.1", "layers.1.experts"])
            False
        """
        if not self.marker or (self.exclusion and any(re.search(self.exclusion, name) for name in submodules)):
            return False
        layers = _marked_layers(submodules, self.marker)
        for patterns in self.presets.values():
            modules = [pattern.partition("#")[0] for pattern in patterns]
            counts = {sum(any(fnmatchcase(name, p) for p in modules) for name in layer) for layer in layers}
            if len(counts) != 1 or 0 in counts:
                return False
        return bool(layers)


def _marked_layers(submodules: Sequence[str], marker: str) -> list[list[str]]:
    """Names in each layer of the stacks that match the marker; the vision tower of a multimodal model does not."""
    layers: dict[str, list[str]] = defaultdict(list)
    for name in submodules:
        if numbered_part := re.match(r"(.*?\.)?\d+(?=\.|$)", name):
            layers[numbered_part[0]].append(name)
    stacks = {_stack(layer) for layer, names in layers.items() if any(re.search(marker, name) for name in names)}
    return [names for layer, names in layers.items() if _stack(layer) in stacks]


def _stack(layer: str) -> str:
    return layer.rpartition(".")[0]


def numbered(path: str) -> tuple[str, ...]:
    """Patterns for a numbered block itself, not for what is inside it (fnmatch has no 'digits only').

    Example:
        >>> numbered("blocks.")
        ('blocks.[0-9]', 'blocks.[0-9][0-9]', 'blocks.[0-9][0-9][0-9]')
    """
    return tuple(path + "[0-9]" * digits for digits in (1, 2, 3))
