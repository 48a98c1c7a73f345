"""Damaged map files: containers and tensors. Each is refused in a sentence that names the file."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import (
    assert_identical,
    tensors_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from map_files import (
    CONV,
    packed,
    refused,
    rewritten,
    unprivileged,
)
from torch import Tensor

from act_core import ActMap, MapError, load_map, save_map
from act_core.mapfile.format import MAX_HEADER_BYTES


def test_rewritten_file_without_damage_loads(path: Path, fitted: ActMap) -> None:
    assert_identical(load_map(rewritten(path, fitted)), fitted)


def test_load_refuses_name_with_null_character(path: Path) -> None:
    assert "cannot be read" in refused(path.with_name("a\0b.safetensors"))


def test_load_refuses_missing_file(path: Path) -> None:
    assert "No such file" in refused(path)


def test_load_refuses_folder(path: Path) -> None:
    path.mkdir()
    assert "folder" in refused(path)


def test_load_refuses_file_without_permission(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    for folder in (path.parent, *path.parent.parents[:2]):
        folder.chmod(0o755)
    path.chmod(0)
    with unprivileged():
        assert "Permission denied" in refused(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -400, -1])
def test_load_refuses_truncated_file(path: Path, fitted: ActMap, size: int) -> None:
    save_map(fitted, path)
    path.write_bytes(path.read_bytes()[:size])
    refused(path)


def test_load_refuses_bytes_after_end(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    path.write_bytes(path.read_bytes() + b"more")
    refused(path)


@pytest.mark.parametrize("size", [8, 100, 10_000])
def test_load_refuses_random_bytes(path: Path, size: int) -> None:
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(size))
        refused(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_load_never_runs_a_pickle(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(Trap(path.with_name("sprung")), protocol))
    text = refused(path)
    assert protocol < 2 or "pickle" in text
    assert not path.with_name("sprung").exists()


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_load_recognises_torch_save(path: Path, zipped: bool) -> None:
    torch.save({"omega": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    assert "pickle" in refused(path)


def test_load_recognises_other_safetensors(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata)
        assert "not an ACT map" in refused(path)


@pytest.mark.parametrize("version", ["0", "3", "", "1.0", "x" * 5000])
def test_load_of_other_format_asks_for_update(path: Path, fitted: ActMap, version: str) -> None:
    assert "update" in refused(rewritten(path, fitted, metadata={"act.format": version}))


FIRST_TENSORS: dict[str, Tensor | None] = {
    "zero length": torch.zeros(0),
    "too long": torch.zeros(7),
    "too short": torch.zeros(5),
    "another shape": torch.zeros(6, 1),
    "a scalar": torch.tensor(1.0),
    "float64": torch.zeros(6, dtype=torch.float64),
    "float16": torch.zeros(6, dtype=torch.float16),
    "bfloat16": torch.zeros(6, dtype=torch.bfloat16),
    "float8": torch.zeros(6).to(torch.float8_e4m3fn),
    "whole numbers": torch.zeros(6, dtype=torch.int32),
    "NaN": torch.full((6,), float("nan")),
    "infinity": torch.full((6,), float("inf")),
    "missing": None,
}


@pytest.mark.parametrize("damage", FIRST_TENSORS)
@pytest.mark.parametrize("part", ["omega", "beta", "low", "high", "source_mean", "target_std"])
def test_load_names_damaged_tensor(path: Path, fitted: ActMap, part: str, damage: str) -> None:
    name = f"toy/conv.{part}"
    assert name in refused(rewritten(path, fitted, tensors={name: FIRST_TENSORS[damage]}))


@pytest.mark.parametrize("name", ["more", "toy/conv.more", "toy/gone.omega", "toy/conv"])
def test_load_names_tensor_without_site(path: Path, fitted: ActMap, name: str) -> None:
    assert name in refused(rewritten(path, fitted, tensors={name: torch.zeros(6)}))


def test_load_refuses_support_that_ends_before_it_begins(path: Path, fitted: ActMap) -> None:
    high = fitted["toy/conv"].high
    assert high is not None
    assert "toy/conv" in refused(rewritten(path, fitted, tensors={"toy/conv.low": high + 1}))


def test_load_refuses_header_over_limit(path: Path, fitted: ActMap) -> None:
    rewritten(path, fitted, metadata={"more": "x" * MAX_HEADER_BYTES})
    assert "header" in refused(path)


@pytest.mark.parametrize("length", [1 << 20, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_load_refuses_header_that_claims_to_be_huge(path: Path, fitted: ActMap, length: int) -> None:
    save_map(fitted, path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path)


@pytest.mark.parametrize("header", [b"{}", b"[]", b"{", b"null", b"\xff\xfe", b'{"__metadata__":7}', b"{" * 5000])
def test_load_refuses_headers_of_other_kinds(path: Path, header: bytes) -> None:
    path.write_bytes(packed(header))
    refused(path)


def test_load_refuses_tensors_outside_file(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for offsets in ([0, 1 << 60], [24, 0], [0, 0], [-24, 0], [1 << 63, 1 << 64]):
        header[CONV]["data_offsets"] = offsets
        path.write_bytes(packed(json.dumps(header).encode(), data[8 + size :]))
        refused(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, fitted: ActMap) -> tuple[Path, bytes]:
    path = save_map(fitted, tmp_path_factory.mktemp("maps") / "calm.safetensors", strength_range=(0, 1))
    return path, path.read_bytes()


@settings(max_examples=400)
@given(data=st.data())
def test_load_of_changed_header_is_valid_or_refused(sound: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = sound
    damaged = bytearray(content)
    header = int.from_bytes(content[:8], "little")
    positions = st.integers(0, 7 + header)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=8)):
        damaged[position] = value
    path.write_bytes(damaged)
    try:
        loaded = load_map(path)
    except MapError as error:
        assert path.name in str(error)  # noqa: PT017
        return
    for site, transport in loaded.transports.items():
        assert all(t.shape == (site.channels,) and t.isfinite().all() for t in tensors_of(transport) if t is not None)
