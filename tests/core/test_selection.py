"""Some of the sites of a map, by pattern and by depth."""

from __future__ import annotations

import pytest
import torch

from act_core import ActMap, MapError
from act_core.selection import Blocks, SiteSelection
from act_core.sites import Site
from act_core.transport import Transport


def map_of(*names: str, component: str = "toy") -> ActMap:
    return ActMap({Site(component, name, None, "tokens", 2): Transport(torch.ones(2), torch.ones(2)) for name in names})


def chosen(act_map: ActMap, pattern: str = "", blocks: Blocks = "all") -> list[str]:
    return [site.name for site in SiteSelection(pattern, blocks).of(act_map).transports]


@pytest.mark.parametrize(
    ("count", "thirds"),
    [(1, "1"), (2, "02"), (3, "012"), (4, "0112"), (5, "00122"), (6, "001122"), (7, "0011122"), (24, "0" * 8)],
)
def test_blocks_are_divided_evenly(count: int, thirds: str) -> None:
    act_map = map_of(*(f"blocks.{number}.{part}" for number in range(count) for part in ("norm", "mlp")))
    depths: tuple[Blocks, ...] = ("early", "middle", "late")
    for third, depth in enumerate(depths):
        expected = [
            f"blocks.{number}.{part}"
            for number, own in enumerate(thirds)
            if own == str(third)
            for part in ("norm", "mlp")
        ]
        if count == 24:
            assert len(chosen(act_map, blocks=depth)) == 16
        elif expected:
            assert chosen(act_map, blocks=depth) == expected


def test_depth_follows_the_order_in_which_blocks_run() -> None:
    act_map = map_of("input_blocks.1.1.norm", "input_blocks.10.0.norm", "middle_block.1.norm", "output_blocks.2.0.norm")
    assert chosen(act_map, blocks="early") == ["input_blocks.1.1.norm"]
    assert chosen(act_map, blocks="middle") == ["input_blocks.10.0.norm", "middle_block.1.norm"]
    assert chosen(act_map, blocks="late") == ["output_blocks.2.0.norm"]


def test_each_component_has_its_own_depth() -> None:
    both = map_of("layers.0", "layers.1", "layers.2", component="clip_l").joined(map_of("blocks.0", "blocks.5", "end"))
    assert chosen(both, blocks="early") == ["layers.0", "blocks.0"]
    assert chosen(both, blocks="late") == ["layers.2", "end"]


def test_pattern_and_blocks_combine() -> None:
    act_map = map_of("blocks.0.norm", "blocks.0.mlp", "blocks.1.norm", "blocks.2.norm")
    assert chosen(act_map, " *mlp, toy/blocks.2.* ,") == ["blocks.0.mlp", "blocks.2.norm"]
    # The depth is that of the whole map: alone, the only block with an mlp would be in the middle.
    assert chosen(act_map, "*mlp", "early") == ["blocks.0.mlp"]


def test_everything_is_the_same_map() -> None:
    act_map = map_of("blocks.0")
    assert SiteSelection(" , ").of(act_map) is act_map
    assert not str(SiteSelection())
    assert str(SiteSelection("*norm,*mlp", "late")) == "late blocks, *norm, *mlp"


def test_nothing_chosen_is_an_error() -> None:
    act_map = map_of("blocks.0")
    with pytest.raises(MapError, match="no site in the late blocks; choose other blocks"):
        chosen(act_map, blocks="late")
    with pytest.raises(MapError, match=r"No site of the map matches \*attn; the first is toy/blocks\.0"):
        chosen(act_map, "*attn")
    with pytest.raises(MapError, match="blocks"):
        SiteSelection(blocks="deep")  # pyright: ignore[reportArgumentType]
