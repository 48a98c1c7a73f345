"""``act-steering import`` and ``export-control-vector``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from command_line import Run, refused
from hostile_files import gguf_bytes, torch_bytes

from act_core import load_map


def test_control_vector_becomes_map_and_back(run: Run, tmp_path: Path, tiny: Path) -> None:
    source, out, back = tmp_path / "happy.gguf", tmp_path / "happy.safetensors", tmp_path / "again.gguf"
    source.write_bytes(gguf_bytes({f"direction.{number}": torch.ones(32) for number in (1, 2)}))
    status, text, _ = run("import", source, "--output", out, "--model", tiny, "--title", "Happy")
    assert status == 0
    assert "2 sites" in text
    assert "imported from the GGUF control vector happy.gguf" in text
    assert load_map(out).card.title == "Happy"
    assert run("generate", "rain", "--map", out, "--model", tiny, "--tokens", 1)[0] == 0
    status, text, _ = run("export-control-vector", out, "--output", back)
    assert status == 0
    assert "--control-vector again.gguf" in text
    refused(run("import", source, "--output", out, "--model", tiny), "already exists", "--overwrite")
    refused(run("export-control-vector", out, "--output", back), "already exists", "--overwrite")
    assert load_map(out).card.title == "Happy"
    assert run("export-control-vector", out, "--output", back, "--overwrite")[0] == 0
    assert "imported from the GGUF control vector happy.gguf" in run("inspect", out)[1]


def test_layers_are_numbers_and_ranges(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "caa.pt", tmp_path / "caa.safetensors"
    source.write_bytes(torch_bytes(torch.ones(32)))
    arguments = ("import", source, "--output", out, "--architecture", "llama")
    assert run(*arguments, "--layer", 7, "--layer", "2-4")[0] == 0
    assert [site.name for site in load_map(out).transports] == [f"model.layers.{n}" for n in (2, 3, 4, 7)]
    for layer in ("-1", "4-2", "first", "1.5"):
        refused(run(*arguments, f"--layer={layer}"), "is not a layer")


def test_size_of_a_multimodal_model_is_that_of_its_language_part(run: Run, tmp_path: Path) -> None:
    source, out, model = tmp_path / "a.gguf", tmp_path / "a.safetensors", tmp_path / "model"
    source.write_bytes(gguf_bytes({"direction.1": torch.ones(8)}))
    model.mkdir()
    text = {"model_type": "gemma3_text", "hidden_size": 8, "num_hidden_layers": 2}
    config = {"model_type": "gemma3", "hidden_size": 7, "text_config": text}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    assert run("import", source, "--output", out, "--model", model)[0] == 0
    assert load_map(out).record.base["language_model"].architecture == "gemma3_text"
    text["hidden_size"] = 9
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    refused(run("import", source, "--output", out, "--model", model, "--overwrite"), "the model has 9")


def test_failed_import_writes_nothing(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "a.gguf", tmp_path / "a.safetensors"
    source.write_bytes(b"GGUF")
    refused(run("import", source, "--output", out), "a.gguf cannot be imported", "cut short")
    refused(run("import", source, "--output", tmp_path / "missing" / "a.safetensors"), "cannot be written")
    assert not out.exists()
