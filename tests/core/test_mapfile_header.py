"""Damaged map files: values in the header. Each is refused in a sentence that names the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from helpers import (
    assert_identical,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from map_files import (
    bare,
    metadata_of,
    refused,
    rewritten,
)

from act_core import ActMap, MapError, load_map, save_map
from act_core.map_charts import depth_chart
from act_core.mapfile.format import MAX_COUNT, MAX_NUMBER
from act_core.plots import effect_chart
from act_core.summary import describe


def test_load_refuses_site_that_is_named_twice(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    sites = json.loads(metadata_of(path)["act.sites"])
    for again in (sites[0], {**sites[0], "layout": "tokens"}, {**sites[0], "effect": 7.0}):
        text = refused(rewritten(path, fitted, metadata={"act.sites": json.dumps([*sites, again])}))
        assert "twice" in text or "missing" in text


DEEP = 200_000


BAD_JSON = [
    "",
    "{",
    "[",
    "nul",
    "7",
    "null",
    '"text"',
    "[7]",
    "[null]",
    "[[]]",
    "[{}]",
    "NaN",
    "[" * DEEP,
    '{"a":' * DEEP,
]


@pytest.mark.parametrize("key", ["act.sites", "act.record"])
@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:8])
def test_load_refuses_bad_json(path: Path, fitted: ActMap, key: str, text: str) -> None:
    refused(rewritten(path, fitted, metadata={key: text}))


@pytest.mark.parametrize("key", ["act.sites", "act.record"])
def test_load_refuses_missing_metadata(path: Path, fitted: ActMap, key: str) -> None:
    refused(rewritten(path, fitted, metadata={key: None}))


BAD_SITES: list[dict[str, Any]] = [
    {"channels": -6},
    {"channels": 0},
    {"channels": 1 << 40},
    {"channels": 10**400},
    {"channels": 6.0},
    {"channels": "6"},
    {"channels": True},
    {"channels": None},
    {"channels": [6]},
    {"layout": "cube"},
    {"layout": None},
    {"layout": ["spatial"]},
    {"output": -1},
    {"output": "0"},
    {"output": 0.5},
    {"name": ""},
    {"name": 7},
    {"name": "conv\n"},
    {"name": "conv\u0000"},
    {"name": "\ud800"},
    {"name": "x" * 5000},
    {"component": ""},
    {"component": None},
    {"component": {"a": 1}},
    {"fallbacks": -1},
    {"fallbacks": "many"},
    {"fallbacks": 1.5},
    {"fallbacks": 2**53},
    {"fallbacks": 10**4200},
    {"effect": "large"},
    {"effect": float("nan")},
    {"effect": float("-inf")},
    {"effect": 10**400},
    {"effect": 1e200},
    {"effect": 3.41e38},
    {"effect": [1.0]},
    {"effect": -0.5},
]


@pytest.mark.parametrize("change", BAD_SITES, ids=lambda change: str(change)[:40])
def test_load_refuses_bad_site(path: Path, fitted: ActMap, change: dict[str, Any]) -> None:
    assert len(refused(rewritten(path, fitted, site=change))) < 1500


BAD_RECORDS: list[dict[str, Any]] = [
    {"estimator": "magic"},
    {"estimator": None},
    {"support": ["observed"]},
    {"walk": 1},
    {"seed": "0"},
    {"seed": 0.5},
    {"seed": -(2**65)},
    {"source_count": None},
    {"source_prompts": 7},
    {"source_prompts": [7]},
    {"source_prompts": "one text"},
    {"target_prompts": {"a": 1}},
    {"notes": None},
    {"base": []},
    {"base": {"toy": {}}},
    {"base": {"toy": {"architecture": 1, "structure": "s", "weights": "w"}}},
    {"base": {"toy": {"architecture": "a"}}},
    {"base": {"toy": {"architecture": "a", "weights": "w", "model_class": 1}}},
    {"base": {"toy": {"architecture": "a", "weights": "w", "bases": "Flux"}}},
    {"base": {"toy": {"architecture": "a", "weights": "w", "variants": [1]}}},
    {"notes": ["\x1b[31mred"]},
    {"notes": ["\r"]},
    {"versions": {"torch": 2}},
    {"versions": ["torch"]},
    {"prompts_sha256": 0},
]


@pytest.mark.parametrize("change", BAD_RECORDS, ids=lambda change: str(change)[:40])
def test_load_refuses_bad_record(path: Path, fitted: ActMap, change: dict[str, Any]) -> None:
    refused(rewritten(path, fitted, record=change))


@pytest.mark.parametrize("text", ["", "[]", "[1]", "[1, 2, 3]", "7", '["a", 1]', "[NaN, 1]", "[0, 1e999]", "[0, null]"])
def test_load_refuses_bad_strength_range(path: Path, fitted: ActMap, text: str) -> None:
    refused(rewritten(path, fitted, metadata={"act.strength_range": text}))


def test_load_refuses_strength_range_of_huge_integers(path: Path, fitted: ActMap) -> None:
    refused(rewritten(path, fitted, metadata={"act.strength_range": f"[0, 1{'0' * 400}]"}))


def test_map_with_largest_numbers_can_be_used(path: Path, fitted: ActMap) -> None:
    largest: dict[str, Any] = {"fallbacks": MAX_COUNT, "effect": MAX_NUMBER}
    without = replace(fitted, transports={site: bare(transport) for site, transport in fitted.transports.items()})
    act_map = load_map(rewritten(path, without, site=largest, record={"seed": 2**64}))
    assert str(MAX_COUNT)[:6] in describe(act_map)
    assert depth_chart(act_map).height > 0
    assert effect_chart(act_map).height > 0
    assert len(act_map.pruned(0.9)) == 1


BAD_COVERS = ["", "7", '{"a": 1}', "[7]", '"text"', '["not base64!"]', '["iVBORw0KGgo="]', f'["/9j/{"A" * 4 * 2**16}"]']


@pytest.mark.parametrize("text", BAD_COVERS, ids=lambda text: text[:20])
def test_load_refuses_cover_that_is_not_a_small_jpeg(path: Path, fitted: ActMap, text: str) -> None:
    refused(rewritten(path, fitted, metadata={"ssmd_cover_images": text}))


def test_load_ignores_unknown_keys(path: Path, fitted: ActMap) -> None:
    rewritten(path, fitted, metadata={"act.later": "x"}, record={"later": {"a": 1}}, site={"later": [1]})
    assert_identical(load_map(path), fitted)


def test_load_refuses_map_without_sites(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    metadata = metadata_of(path)
    safetensors.torch.save_file({}, path, {**metadata, "act.sites": "[]"})
    assert "at least one site" in refused(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, fitted: ActMap) -> tuple[Path, bytes]:
    path = save_map(fitted, tmp_path_factory.mktemp("maps") / "calm.safetensors", strength_range=(0, 1))
    return path, path.read_bytes()


@settings(max_examples=100)
@given(data=st.data())
def test_load_of_changed_values_is_valid_or_refused(sound: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = sound
    path.write_bytes(content)
    tensors, metadata = safetensors.torch.load_file(path), metadata_of(path)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    sites, record = json.loads(metadata["act.sites"]), json.loads(metadata["act.record"])
    place = data.draw(st.sampled_from([*sites, record]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(values)
    metadata |= {"act.sites": json.dumps(sites), "act.record": json.dumps(record)}
    safetensors.torch.save_file(tensors, path, metadata)
    try:
        loaded = load_map(path)
    except MapError as error:
        assert path.name in str(error)  # noqa: PT017
        return
    assert len(loaded) == len(sites)
    save_map(loaded, path)
    assert load_map(path).record == loaded.record
