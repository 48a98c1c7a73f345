"""What a map file says about itself: ModelSpec keys, evidence, prompts left out, sidecars, and listings of folders."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import Run, refused
from map_files import jpeg, metadata_of

from act_core import ActMap, MapError, load_map, save_map
from act_core.calibration import Calibration
from act_core.mapfile import list_maps, table_of, write_sidecars
from act_core.mapfile.read import read_header
from act_core.records import Card, Evidence, Fingerprint, FitRecord
from act_core.summary import describe

EVIDENCE = Evidence(
    "probability of ink", 0.91, 0.85, 0.95, without=0.01, control=0.02, kept=0.6, samples=72, model="demo model"
)


def test_thumbnail_tags_and_hint_are_modelspec_keys(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, title="calm", usage_hint="0.5 to 1", tags="mood, text", cover=jpeg())
    metadata = metadata_of(path)
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert (metadata["modelspec.usage_hint"], metadata["modelspec.tags"]) == ("0.5 to 1", "mood, text")
    kind, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(data) == jpeg()
    assert (load_map(path).card.usage_hint, load_map(path).card.tags) == ("0.5 to 1", "mood, text")


def test_hash_is_that_of_all_tensors(path: Path, fitted: ActMap) -> None:
    """ModelSpec: SHA-256 of the file without its header."""
    save_map(fitted, path, title="calm")
    data = path.read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert metadata_of(path)["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors).hexdigest()}"


def test_file_with_changed_coefficient_is_refused(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MapError, match="its tensors are not those that were saved; download or save it again"):
        load_map(path)


def test_evidence_survives_saving_but_not_editing(path: Path, fitted: ActMap) -> None:
    save_map(replace(fitted, evidence=(EVIDENCE,)), path)
    loaded = load_map(path)
    assert loaded.evidence == (EVIDENCE,)
    assert "0.91 (0.85 to 0.95)" in describe(loaded)
    described = " ".join(describe(loaded).split())  # long lines are wrapped
    assert "without the map 0.01, control 0.02, content kept 0.6" in described
    assert loaded.scaled(0.5).evidence == loaded.restrict("*").evidence == ()


@pytest.mark.parametrize("value", ["12", [[1]], [{"measure": "x"}], [{"measure": "x", "value": "NaN"}], [{"value": 1}]])
def test_damaged_evidence_is_refused(path: Path, fitted: ActMap, value: object) -> None:
    save_map(replace(fitted, evidence=(EVIDENCE,)), path)
    tensors, metadata = safetensors.torch.load_file(path), metadata_of(path)
    safetensors.torch.save_file(tensors, path, {**metadata, "act.evidence": json.dumps(value)})
    with pytest.raises(MapError, match="its description"):
        load_map(path)


def test_prompts_can_be_left_out(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, keep_prompts=False)
    for prompt in (*fitted.record.source_prompts, *fitted.record.target_prompts):
        assert prompt.encode() not in path.read_bytes()
    kept = load_map(path).record
    assert kept.source_prompts == kept.target_prompts == ()
    assert (kept.source_count, kept.prompts_sha256) == (fitted.record.source_count, fitted.record.prompts_sha256)


def test_model_of_a_record_names_each_architecture_once() -> None:
    bases = {"clip_l": "clip_text_model", "clip_g": "clip_text_model", "diffusion_model": "unet"}
    record = FitRecord(base={component: Fingerprint(name, "") for component, name in bases.items()})
    assert record.model == "clip_text_model + unet"


def test_sidecars_hold_card_and_hash(path: Path, fitted: ActMap) -> None:
    save_map(replace(fitted, evidence=(EVIDENCE,)), path, title="Calm", tags="mood, text", cover=jpeg())
    written = write_sidecars(path)
    assert [file.name for file in written] == [f"{path.stem}.metadata.json", f"{path.stem}.jpg"]
    assert written[1].read_bytes() == jpeg()
    metadata = json.loads(written[0].read_text("utf-8"))
    assert metadata["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (metadata["model_name"], metadata["tags"], metadata["base_model"]) == ("Calm", ["mood", "text"], "toy")
    assert "probability of ink" in metadata["notes"]
    assert str(path.parent) not in written[0].read_text("utf-8")
    written[1].unlink()
    written[0].write_text("notes of the user")
    with pytest.raises(MapError, match="already exists"):
        write_sidecars(path)
    assert written[0].read_text() == "notes of the user"
    assert not written[1].exists()
    assert write_sidecars(path, overwrite=True) == written


def test_sidecars_replace_no_picture_of_the_user(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, cover=jpeg())
    picture = path.with_suffix(".jpg")
    picture.write_bytes(b"of the user")
    with pytest.raises(MapError, match="already exists"):
        write_sidecars(path)
    assert picture.read_bytes() == b"of the user"
    assert not path.with_name(f"{path.stem}.metadata.json").exists()


@pytest.mark.parametrize(("low", "high", "advised"), [(-1.0, 0.75, 0.75), (-1.0, 1.25, 1.0), (1.5, 2.0, 1.5)])
def test_sidecars_advise_a_strength_in_the_range(
    path: Path, fitted: ActMap, low: float, high: float, advised: float
) -> None:
    save_map(fitted, path, strength_range=(low, high))
    metadata = json.loads(write_sidecars(path)[0].read_text("utf-8"))
    assert json.loads(metadata["usage_tips"]) == {"strength_min": low, "strength_max": high, "strength": advised}


def test_listing_shows_maps_and_reasons(tmp_path: Path, fitted: ActMap) -> None:
    folder = tmp_path / "maps"
    (folder / "styles").mkdir(parents=True)
    measured = Calibration((-1.0, 0.0, 1.0), (-0.5, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 0.6, 1.25), (0.0, -1.0))
    calibrated = replace(fitted, calibration=measured, card=Card(strength_range=(-1.0, 1.25)))
    save_map(calibrated, folder / "styles" / "ink.safetensors", title="Ink")
    save_map(fitted, folder / "calm.safetensors", title="Calm", strength_range=(0, 1))
    safetensors.torch.save_file({"lora_up": torch.zeros(2)}, folder / "lora.safetensors")
    save_map(fitted, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "broken.safetensors").symlink_to(folder / "nowhere.safetensors")
    (folder / "._calm.safetensors").write_bytes(bytes(16))  # as macOS writes beside each file on some disks
    found = {listed.name: listed for listed in list_maps(folder)}
    assert list(found) == ["broken.safetensors", "calm.safetensors", "lora.safetensors", "styles/ink.safetensors"]
    assert "cannot be read" in found["broken.safetensors"].problem
    assert "it is a LoRA" in found["lora.safetensors"].problem
    assert [found[name].strengths for name in ("calm.safetensors", "styles/ink.safetensors")] == [
        "0 to 1",
        "-1 to 1.25",
    ]
    assert found["calm.safetensors"].size == (folder / "calm.safetensors").stat().st_size
    assert [listed.name for listed in found.values() if listed.mentions("INK")] == ["styles/ink.safetensors"]
    text = table_of(list(found.values()))
    assert "Ink" in text
    assert "lora.safetensors: it is a LoRA" in text


def test_listing_has_effect_size_and_what_it_can_be_searched_for(tmp_path: Path, fitted: ActMap) -> None:
    effects = (0.1, 0.2, 0.9)
    pairs = zip(list(fitted.transports.items())[:3], effects, strict=True)
    act_map = replace(fitted, transports={site: replace(one, effect=effect) for (site, one), effect in pairs})
    path = save_map(act_map, tmp_path / "ink.safetensors", title="Ink", tags="drawing")
    (listed,) = list_maps(tmp_path)
    assert listed.effect == pytest.approx(0.2)
    line = table_of([listed]).splitlines()[1]
    assert f" 0.20 {path.stat().st_size / 1e6:.2f} MB " in " ".join(line.split())
    for text in ("INK.safe", "ink", " Drawing ", fitted.record.model.upper(), ""):
        assert listed.mentions(text)
    assert not listed.mentions("night")


def test_listing_refuses_folder_with_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act_core.mapfile.listing.MAX_FILES", 2)
    for name in ("a", "b"):
        (tmp_path / name).touch()
    assert list_maps(tmp_path) == []
    (tmp_path / "c").touch()
    with pytest.raises(MapError, match="has more than 2 files"):
        list_maps(tmp_path)


def test_listing_has_one_line_for_each_map_of_a_stranger(tmp_path: Path, fitted: ActMap) -> None:
    forged = "\nofficial.safetensors  Official map  SDXL  1.00"
    base = {"toy": Fingerprint(f"SDXL{forged}{'x' * 300_000}", "")}
    hostile = replace(fitted, record=replace(fitted.record, base=base))
    path = save_map(hostile, tmp_path / "a\n\u2028b.safetensors", title=f"Ink{forged}")
    tensors, metadata = safetensors.torch.load_file(path), metadata_of(path)
    safetensors.torch.save_file(tensors, path, {**metadata, "modelspec.hash_sha256": forged})
    (tmp_path / "c\nd.safetensors").write_bytes(b"")
    found = list_maps(tmp_path)
    lines = table_of(found).splitlines()
    assert len(lines) == 3
    assert all(len(line) < 250 for line in lines)
    assert [listed.path for listed in found] == [path, tmp_path / "c\nd.safetensors"]
    assert [listed.name for listed in found] == ["a b.safetensors", "c d.safetensors"]


def test_long_title_is_short_in_messages(fitted: ActMap) -> None:
    act_map = replace(fitted, card=replace(fitted.card, title="Ink\nforged " + "x" * 10_000))
    assert act_map.called.startswith("The map 'Ink forged ")
    assert len(act_map.called) < 100
    assert len(repr(act_map)) < 200


def test_links_in_a_loop_are_listed_with_the_reason(tmp_path: Path, fitted: ActMap) -> None:
    save_map(fitted, tmp_path / "calm.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("other.safetensors")
    (tmp_path / "other.safetensors").symlink_to("loop.safetensors")
    found = list_maps(tmp_path)
    assert [listed.header is not None for listed in found] == [True, False, False]
    assert "cannot be read: Too many levels of symbolic links." in found[1].problem
    # Saving over such a link replaces it, as it has no target.
    save_map(fitted, tmp_path / "loop.safetensors")
    assert len(load_map(tmp_path / "loop.safetensors")) == len(fitted)


def test_header_alone_says_the_same_as_the_map(path: Path, fitted: ActMap) -> None:
    save_map(replace(fitted, evidence=(EVIDENCE,)), path, title="Calm")
    header, loaded = read_header(path), load_map(path)
    assert (header.record, header.card, header.evidence) == (loaded.record, loaded.card, loaded.evidence)
    assert header.sites == tuple(loaded.transports)


def test_command_lists_folder(tmp_path: Path, fitted: ActMap) -> None:
    save_map(fitted, tmp_path / "calm.safetensors", title="Calm")
    command = [sys.executable, "-m", "act_core", "inspect"]
    listed = subprocess.run([*command, "--folder", tmp_path], capture_output=True, text=True, check=True)
    assert "Calm" in listed.stdout
    refused = subprocess.run([*command, "--folder", tmp_path, "a.safetensors"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.fixture
def behind_utc(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """A machine whose local time is five hours behind UTC."""
    monkeypatch.setenv("TZ", "EST+5")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("behind_utc")
def test_same_map_has_same_bytes(path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    first = save_map(fitted, path, title="calm").read_bytes()
    assert save_map(load_map(path), path).read_bytes() == first
    assert metadata_of(path)["modelspec.date"] == "1970-01-02"


def test_command_writes_sidecars_and_replaces_them_only_when_asked(run: Run, path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, cover=jpeg())
    written = path.with_name(f"{path.stem}.metadata.json")
    status, out, _ = run("inspect", path, "--sidecars")
    assert status == 0
    assert f"Saved {written}." in out
    written.write_text("notes of the user")
    refused(run("inspect", path, "--sidecars"), "already exists")
    assert written.read_text() == "notes of the user"
    assert run("inspect", path, "--sidecars", "--overwrite")[0] == 0
    assert "sha256" in written.read_text()
