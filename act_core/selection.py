"""Chooses some of the sites of a map: by a pattern, or by how deep in the model they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from .errors import MapError
from .maps import ActMap
from .settings import check_choice
from .sites import Site

Blocks = Literal["all", "early", "middle", "late"]


@dataclass(frozen=True)
class SiteSelection:
    """Which sites of a map act.

    Each component is divided by itself. Its blocks are counted in the order in which they run. The sites of a block
    have names that agree up to their first number, such as ``joint_blocks.3``; a site without a number is a block of
    its own. The first third of the blocks is early and the last third late; of two blocks one is early and one late,
    and a single block is in the middle.

    Attributes:
        pattern: fnmatch patterns on ``component/name``, separated by commas; empty for all sites.
        blocks: the part of the depth.

    Raises:
        MapError: no such part of the depth.

    Example:
        >>> import torch
        >>> from act_core.transport import Transport
        >>> names = ["blocks.0.norm", "blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp"]
        >>> nothing = Transport(torch.ones(2), torch.zeros(2))
        >>> act_map = ActMap({Site("toy", name, None, "tokens", 2): nothing for name in names})
        >>> [site.key for site in SiteSelection("*mlp", "early").of(act_map).transports]
        ['toy/blocks.0.mlp']
    """

    pattern: str = ""
    blocks: Blocks = "all"

    def __post_init__(self) -> None:
        check_choice("blocks", self.blocks, get_args(Blocks), MapError)

    def __str__(self) -> str:
        """For reports; empty if all sites are chosen."""
        depth = "" if self.blocks == "all" else f"{self.blocks} blocks"
        return ", ".join((*[depth] * bool(depth), *self._patterns))

    def of(self, act_map: ActMap) -> ActMap:
        """The map with only the chosen sites.

        Raises:
            MapError: there are none.
        """
        chosen = act_map
        if self.blocks != "all":
            parts = _parts(act_map)
            kept = {site: t for site, t in act_map.transports.items() if parts[site] == self.blocks}
            if not kept:
                raise MapError(
                    f"{act_map.called} has no site in the {self.blocks} blocks; choose other blocks, or all."
                )
            chosen = replace(act_map, transports=kept)
        return chosen.restrict(*self._patterns) if self._patterns else chosen

    @property
    def _patterns(self) -> list[str]:
        return [part.strip() for part in self.pattern.split(",") if part.strip()]


def _parts(act_map: ActMap) -> dict[Site, str]:
    """The part of the depth that each site belongs to."""
    parts: dict[Site, str] = {}
    for component in act_map.components:
        sites = [site for site in act_map.transports if site.component == component]
        blocks = list(dict.fromkeys(block_of(site.name) for site in sites))
        for site in sites:
            middle = blocks.index(block_of(site.name)) + 0.5  # of the block
            parts[site] = get_args(Blocks)[1 + int(3 * middle / len(blocks))]
    return parts


def block_of(name: str) -> str:
    """The name of the block that a submodule belongs to: up to its first number; without a number, all of it.

    Example:
        >>> block_of("joint_blocks.3.attn.proj")
        'joint_blocks.3'
    """
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])
