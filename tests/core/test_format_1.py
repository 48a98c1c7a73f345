"""Maps written by version 0.1.0 still load, with equal tensors and records: see data/format_1."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from act_core import ActMap, load_map, save_map
from act_core.sites import Site

DATA = Path(__file__).parents[1] / "data" / "format_1"
SAMPLES = ["edited", "language", "layouts", "record"]
TENSORS = ("omega", "beta", "low", "high", "source_mean", "source_std", "target_mean", "target_std")


def expected(sample: str) -> dict[str, Any]:
    return json.loads((DATA / f"{sample}.json").read_text("utf-8"))


def tensors_by_name(act_map: ActMap, key: str) -> dict[str, torch.Tensor]:
    transport = act_map[key]
    values = (transport.omega, transport.beta, transport.low, transport.high, *(transport.statistics or ()))
    return {name: value for name, value in zip(TENSORS, values, strict=False) if value is not None}


def test_every_sample_is_tested() -> None:
    assert sorted(path.stem for path in DATA.glob("*.safetensors")) == SAMPLES


@pytest.mark.parametrize("sample", SAMPLES)
def test_load_returns_sites_and_tensors_of_format_1(sample: str) -> None:
    act_map, entries = load_map(DATA / f"{sample}.safetensors"), expected(sample)["sites"]
    fields = ("component", "name", "output", "layout", "channels")
    assert list(act_map.transports) == [Site(**{name: entry[name] for name in fields}) for entry in entries]
    for site, entry in zip(act_map.transports, entries, strict=True):
        assert act_map[site.key].fallbacks == entry["fallbacks"]
        assert act_map[site.key].effect == entry["effect"]
        found = tensors_by_name(act_map, site.key)
        assert list(found) == list(entry["tensors"])
        for name, values in entry["tensors"].items():
            assert found[name].dtype == torch.float32
            assert found[name].tolist() == values


def common(value: Any, sample: Any) -> Any:
    """The fields of a value that the sample has, at any depth."""
    if not isinstance(sample, dict):
        return value
    return {name: common(value[name], sample[name]) for name in sample}


@pytest.mark.parametrize("sample", SAMPLES)
def test_load_returns_record_and_card_of_format_1(sample: str) -> None:
    act_map, content = load_map(DATA / f"{sample}.safetensors"), expected(sample)
    # Tuples become lists. Fields that were added later are not in the sample.
    record, card = (json.loads(json.dumps(asdict(part), default=bool)) for part in (act_map.record, act_map.card))
    assert common(record, content["record"]) == content["record"]
    assert common(card, content["card"]) == content["card"]
    assert act_map.card.cover.startswith(b"\xff\xd8") is content["cover"]


@pytest.mark.parametrize("sample", SAMPLES)
def test_save_keeps_a_loaded_map_of_format_1(sample: str, tmp_path: Path) -> None:
    before = load_map(DATA / f"{sample}.safetensors")
    after = load_map(save_map(before, tmp_path / "again.safetensors", statistics=True))
    assert (after.record, after.card) == (before.record, before.card)
    for key in (site.key for site in before.transports):
        one, other = tensors_by_name(before, key), tensors_by_name(after, key)
        assert {name: values.tolist() for name, values in one.items()} == {n: v.tolist() for n, v in other.items()}
