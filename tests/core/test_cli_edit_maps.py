"""The commands that compare, prune and blend maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Run, refused
from PIL import Image

from act_core import load_map, save_map
from act_core.records import Fingerprint


@pytest.fixture
def halved(tmp_path: Path, tiny_map: Path) -> Path:
    """Half of the map of the tiny model."""
    return save_map(load_map(tiny_map).scaled(0.5), tmp_path / "half.safetensors", title="Half")


def test_compare_prints_report_and_saves_chart(run: Run, tmp_path: Path, tiny_map: Path, halved: Path) -> None:
    status, text, _ = run("compare", tiny_map, halved, "--chart", tmp_path / "chart.png")
    assert status == 0
    assert "B: Half" in text
    assert "cosine 1.00, size of B 0.50 times that of A" in text
    assert Image.open(tmp_path / "chart.png").size[0] > 300


def test_prune_saves_smaller_map(run: Run, tmp_path: Path, tiny_map: Path) -> None:
    out = tmp_path / "small.safetensors"
    status, text, _ = run("prune", tiny_map, "--share", 0.5, "--out", out)
    assert status == 0
    pruned, whole = load_map(out), load_map(tiny_map)
    assert len(pruned) < len(whole)
    assert f"{len(pruned)} of {len(whole)} sites" in text
    assert out.stat().st_size < tiny_map.stat().st_size


def test_blend_names_maps_in_file(run: Run, tmp_path: Path, tiny_map: Path, halved: Path) -> None:
    out = tmp_path / "mix.safetensors"
    assert run("blend", tiny_map, halved, "--weight", 1, "--weight", -2, "--title", "Nothing", "--out", out)[0] == 0
    blended = load_map(out)
    assert blended.card.title == "Nothing"
    assert blended.record.merged_from[1] == "Half"
    assert all(float(transport.beta.abs().max()) < 1e-6 for transport in blended.transports.values())


def test_blend_has_equal_weights_that_add_up_to_1(run: Run, tmp_path: Path, tiny_map: Path) -> None:
    out = tmp_path / "mix.safetensors"
    assert run("blend", tiny_map, tiny_map, "--out", out)[0] == 0
    assert max(load_map(out).difference(load_map(tiny_map)).values()) < 1e-6  # rounding in float32


def test_edits_refuse_what_they_cannot_do(run: Run, tmp_path: Path, tiny_map: Path, halved: Path) -> None:
    out = tmp_path / "out.safetensors"
    refused(run("prune", tiny_map, "--share", 0, "--out", out), "share to keep is 0")
    refused(run("prune", tiny_map, "--by", "layers", "--out", out), "choose one of sites, channels")
    refused(run("prune", tiny_map, "--out", halved), "already exists", "--overwrite")
    refused(run("blend", tiny_map, "--out", out), "at least two maps")
    refused(run("blend", tiny_map, halved, "--weight", 1, "--out", out), "2 maps, but 1 weights")
    refused(run("compare", tiny_map, halved, "--chart", tmp_path / "chart.gif"), "must end in .png")
    base = {"language_model": Fingerprint("other", "")}
    act_map = load_map(tiny_map)
    other = save_map(replace(act_map, record=replace(act_map.record, base=base)), tmp_path / "other.safetensors")
    refused(run("blend", tiny_map, other, "--out", out), "different models, llama and other")
    assert not out.exists()
