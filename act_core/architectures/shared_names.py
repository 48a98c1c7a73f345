"""Names of the same parts of one model in two libraries, diffusers and ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from ..sites import End, Segment, Site

Parts = Mapping[str, str]

# Classes of models whose layers have one name in diffusers and ComfyUI.
SAME_NAMES = ("QwenImageTransformer2DModel",)
_OPPOSITE: Mapping[End, End] = {"leading": "trailing", "trailing": "leading"}


@dataclass(frozen=True, eq=False)
class SharedNames:
    """How the names of one library follow from those of another. Only parts that return the same tensor are listed.

    Both libraries load the same checkpoints, yet they number blocks differently, fuse the projections of attention or
    not, and return norms with or without modulation.

    Attributes:
        parts: names in ComfyUI by those in diffusers. ``{}`` stands for the number of a block, ``*`` at the end for
            any part inside. ``#`` and an index may follow where a part returns several tensors, of which the
            libraries have different orders.
        blocks: further parts, from the names of all submodules of a model of either library, where the numbers of
            blocks depend on its size.
        variant: class of the model's configuration in ComfyUI, where ComfyUI builds other models from the same class.
        swaps_streams: whether the libraries join the tokens of text and picture in opposite orders.
    """

    parts: Parts = field(default_factory=dict[str, str])
    blocks: Callable[[Collection[str]], Parts] | None = None
    variant: str = ""
    swaps_streams: bool = False


class Translator:
    """Translates the sites of maps into the names of one model.

    Args:
        shared: names of its family.
        built_by: library of the model.
        submodules: names of all submodules of the model.

    Example:
        >>> toy = SharedNames({"blocks.{}.attn.to_out.0": "blocks.{}.proj", "blocks.{}#0": "blocks.{}#1"})
        >>> Translator(toy, "ComfyUI", []).site(Site("model", "blocks.7.attn.to_out.0", None, "tokens", 2)).name
        'blocks.7.proj'
        >>> Translator(toy, "diffusers", []).site(Site("model", "blocks.7", 1, "tokens", 2)).output
        0
    """

    def __init__(self, shared: SharedNames, built_by: str, submodules: Collection[str]) -> None:
        parts = {**shared.parts, **(shared.blocks(submodules) if shared.blocks else {})}
        if built_by != "ComfyUI":
            parts = {comfyui: diffusers for diffusers, comfyui in parts.items()}
        # A name with fewer placeholders comes first: it says more.
        pairs = sorted(parts.items(), key=lambda pair: pair[0].count("*"))
        self._exact = {theirs: ours for theirs, ours in pairs if not re.search(r"\{\}|\*", theirs)}
        self._patterns = [(_pattern(theirs), _template(ours)) for theirs, ours in pairs if theirs not in self._exact]
        self._swaps = shared.swaps_streams

    def site(self, site: Site) -> Site | None:
        """The site of a map in the model; None if the model has no such tensor."""
        found = self._output(site.name, site.output)
        segment = site.segment and self._segment(site.segment)
        if found is None or (site.segment and not segment):
            return None
        return replace(site, name=found[0], output=found[1], segment=segment)

    def _segment(self, segment: Segment) -> Segment | None:
        found = self._output(segment.gauge, segment.output)
        if found is None:
            return None
        end, measures = segment.end, segment.measures
        if self._swaps:
            end, measures = _OPPOSITE[end], _OPPOSITE[measures]
        return Segment(end, found[0], found[1], measures)

    def _output(self, name: str, output: int | None) -> tuple[str, int | None] | None:
        found = self.name(f"{name}#{output or 0}")
        if found is not None:
            name, _, index = found.partition("#")
            return name, int(index)
        found = self.name(name)
        return None if found is None else (found, output)

    def name(self, name: str) -> str | None:
        """The name of a part in the model; None if the model has no part that returns the same."""
        if name in self._exact:
            return self._exact[name]
        for pattern, template in self._patterns:
            if match := pattern.fullmatch(name):
                return template.format(*match.groups())
        return None


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)").replace(r"\*", r"([^#]+)"))


def _template(name: str) -> str:
    return name.replace("*", "{}")
