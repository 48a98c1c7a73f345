"""Maps with noise levels in files: what is kept, and which damage is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bins import FIRST, LEVELS, binned_map, plain_map
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_core import load_map, save_map
from act_core.errors import MapFileError
from act_core.mapfile.format import FORMAT_KEY, LEVELS_KEY


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("bounded", [True, False])
def test_file_keeps_levels_and_bins(tmp_path: Path, statistics: bool, bounded: bool) -> None:
    act_map = binned_map(bounded=bounded)
    path = save_map(act_map, tmp_path / "style.safetensors", statistics=statistics)
    loaded = load_map(path)
    assert loaded.levels == LEVELS
    assert loaded.site(FIRST.key) == FIRST
    assert set(loaded.difference(act_map).values()) == {0.0}
    assert (loaded[FIRST.key].statistics is not None) == statistics


def test_map_without_levels_is_written_in_format_1(tmp_path: Path) -> None:
    assert header(save_map(plain_map(), tmp_path / "a.safetensors"))[FORMAT_KEY] == "1"
    assert header(save_map(binned_map(), tmp_path / "b.safetensors"))[FORMAT_KEY] == "2"


def header(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def without_a_bin(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[f"{FIRST.key}.omega"] = tensors[f"{FIRST.key}.omega"][:2].contiguous()


def one_tensor_without_bins(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[f"{FIRST.key}.beta"] = tensors[f"{FIRST.key}.beta"][0].contiguous()


def not_finite(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[f"{FIRST.key}.beta"][2, 1] = torch.inf


def levels_as(text: str) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    def damage(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata[LEVELS_KEY] = text

    return damage


def without_levels(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata[LEVELS_KEY]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_a_bin, r"is F32 \[2, 4\], not F32 \[4\] or F32 \[3, 4\]"),
        (one_tensor_without_bins, r"is F32 \[4\], not F32 \[3, 4\]"),
        (not_finite, "values that are not finite"),
        (levels_as("[2.0, 0.5, 0.2]"), "The noise level is 2.0; it must be a number from 0 to 1"),
        (levels_as("[0.2, 0.5, 0.9]"), "each must be lower than the one before it"),
        (levels_as("[0.9, 0.5]"), r"is F32 \[3, 4\], not F32 \[4\] or F32 \[2, 4\]"),
        (levels_as('["high"]'), "not a finite number"),
        (levels_as("0.5"), "is 0.5, not a list"),
        (levels_as("[" * 5000), "description is damaged"),
        (without_levels, r"is F32 \[3, 4\], not F32 \[4\]"),
    ],
)
def test_damaged_file_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Tensor], dict[str, str]], None], reason: str
) -> None:
    path = save_map(binned_map(), tmp_path / "style.safetensors")
    tensors, metadata = load_file(path), header(path)
    damage(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(MapFileError, match=reason) as caught:
        load_map(path)
    assert "style.safetensors" in str(caught.value)
