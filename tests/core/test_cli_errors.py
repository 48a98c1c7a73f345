"""The command line: exit status 2 and a one-sentence error for invalid input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import COMMANDS, Run, refused
from helpers import tiny_llama

from act_core.models.transformers import TransformersModel


def test_sweep_refuses_what_it_cannot_draw(
    run: Run, tmp_path: Path, tiny: Path, tiny_map: Path, tiny_pipeline: Path, pipeline_map: Path
) -> None:
    def swept(model: Path = tiny_pipeline, map: Path = pipeline_map, out: str = "a.png", *more: object) -> None:
        result = run("sweep", "rain", "--model", model, "--map", map, "--out", tmp_path / out, *more)
        results.append(result)

    results: list[tuple[int, str, str]] = []
    swept(model=tiny)
    refused(results[-1], "not a pipeline folder")
    swept(map=tiny_map)
    refused(results[-1], "none of its")
    swept(out="a.txt")
    refused(results[-1], "not a name for a picture")
    swept(out="nowhere/a.png")
    refused(results[-1], "cannot be written")
    swept(tiny_pipeline, pipeline_map, "a.png", "--size", 17, 16)
    refused(results[-1], "multiples of 4")
    swept(tiny_pipeline, pipeline_map, "a.png", "--steps", 0)
    refused(results[-1], "at least 1")
    swept(tiny_pipeline, pipeline_map, "a.png", "--strength", "1e30")
    refused(results[-1], "from -1000 to 1000")
    swept(tiny_pipeline, pipeline_map, "a.png", "--branch", "negative", "--guidance", 1, "--steps", 1)
    refused(results[-1], "raise the guidance above 1")
    swept(out="long" * 100 + ".png")
    refused(results[-1], "long")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    swept(out="file/a.png")
    refused(results[-1], "cannot be written")


def test_failed_sweep_keeps_old_picture(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.webp"
    out.write_bytes(b"what was there")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    options = ("--map", pipeline_map, "--out", out, "--steps", 1, "--strength", 1)
    refused(run("sweep", "rain", "--model", tiny_pipeline, *options), "No space left")
    assert out.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [out]


def test_map_of_pipeline_on_language_model_names_both(run: Run, tiny: Path, pipeline_map: Path) -> None:
    for command in (("generate", "rain", "--map"), ("inspect",)):
        refused(run(*command, pipeline_map, "--model", tiny), "clip_text_model (clip_l)", "LlamaForCausalLM")


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_missing_file_is_refused(run: Run, tmp_path: Path, tiny: Path, command: str) -> None:
    gone = tmp_path / "gone.safetensors"
    arguments = {
        "fit": ("--prompts", gone, "--out", tmp_path / "out.safetensors", "--model", tiny),
        "inspect": (gone,),
        "gallery": (gone,),
        "generate": ("rain", "--map", gone, "--model", tiny),
        "sweep": ("rain", "--map", gone, "--model", tiny, "--out", tmp_path / "out.png"),
        "check-prompts": (gone,),
        "calibrate": (gone, "--model", tiny, "--out", tmp_path / "out.safetensors"),
        "fit-all": ("--prompt-sets", gone, "--model", tiny, "--out", tmp_path / "maps"),
        "export-lora": (gone, "--model", tiny, "--out", tmp_path / "out.safetensors"),
        "import": (gone, "--out", tmp_path / "out.safetensors"),
        "export-control-vector": (gone, "--out", tmp_path / "out.gguf"),
        "compare": (gone, gone),
        "prune": (gone, "--out", tmp_path / "out.safetensors"),
        "blend": (gone, gone, "--out", tmp_path / "out.safetensors"),
    }[command]
    refused(run(command, *arguments), "gone.safetensors")


def test_missing_model_is_refused(run: Run, tmp_path: Path, tiny_map: Path, prompt_set: Path) -> None:
    gone = tmp_path / "gone"
    refused(run("generate", "rain", "--map", tiny_map, "--model", gone), "There is no model at", "gone")
    refused(run("inspect", tiny_map, "--model", gone), "There is no model at")
    refused(run("fit", "--prompts", prompt_set, "--out", tmp_path / "a.safetensors", "--model", gone), "no model at")


def test_model_that_cannot_be_loaded_is_refused(run: Run, tmp_path: Path, tiny_map: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}', "utf-8")
    refused(run("generate", "rain", "--map", tiny_map, "--model", tmp_path), tmp_path.name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04damaged", b"\x80\x04", b"x" * 1000])
def test_bad_map_is_refused(run: Run, tmp_path: Path, tiny: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(run("inspect", path), "bad.safetensors")
    refused(run("generate", "rain", "--map", path, "--model", tiny), "bad.safetensors")


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "much", ""])
def test_bad_strength_is_refused(run: Run, tiny: Path, tiny_map: Path, strength: str) -> None:
    refused(run("generate", "rain", "--map", tiny_map, "--model", tiny, f"--strength={strength}"), "strength")


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_bad_device_is_refused(
    run: Run, tmp_path: Path, tiny: Path, tiny_map: Path, prompt_set: Path, device: str
) -> None:
    refused(run("generate", "rain", "--map", tiny_map, "--model", tiny, "--device", device), device)
    out = tmp_path / "out.safetensors"
    refused(run("fit", "--prompts", prompt_set, "--out", out, "--model", tiny, "--device", device), device)
    assert not out.exists()


def test_map_of_other_model_is_refused(run: Run, tmp_path: Path, tiny_map: Path) -> None:
    wider = tiny_llama()
    wider.module.resize_token_embeddings(300)
    wider.module.model.layers = wider.module.model.layers[:0]
    wider.module.config.num_hidden_layers = 0
    wider.module.save_pretrained(tmp_path)
    wider.tokenizer.save_pretrained(tmp_path)
    refused(run("generate", "rain", "--map", tiny_map, "--model", tmp_path), "'gloomy to cheerful'", "none of its")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--tokens", "0"), "at least 1"),
        (("--tokens", "-4"), "at least 1"),
        (("--tokens", "100000"), "do not fit"),
        (("--chat",), "chat template"),
        (("--temperature", "1e-300"), "temperature"),
        (("--temperature", "-1"), "temperature"),
    ],
)
def test_generate_refuses_bad_settings(
    run: Run, tiny: Path, tiny_map: Path, arguments: tuple[str, ...], word: str
) -> None:
    refused(run("generate", "rain", "--map", tiny_map, "--model", tiny, *arguments), word)


def test_generate_refuses_empty_prompt(run: Run, tiny: Path, tiny_map: Path) -> None:
    refused(run("generate", "", "--map", tiny_map, "--model", tiny), "prompt is empty")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--batch-size", "0"), "batch_size"),
        (("--sites", "toy/nothing"), "toy/nothing"),
        (("--memory", "0.001"), "memory budget"),
        (("--memory", "-1"), "memory budget"),
        (("--memory", "nan"), "memory"),
        (("--memory", "inf"), "memory"),
    ],
)
def test_fit_refuses_bad_settings_and_writes_nothing(
    run: Run, tmp_path: Path, tiny: Path, prompt_set: Path, arguments: tuple[str, ...], word: str
) -> None:
    out = tmp_path / "out.safetensors"
    refused(run("fit", "--prompts", prompt_set, "--out", out, "--model", tiny, *arguments), word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["map.pt", "gone/map.safetensors", "file/map.safetensors"])
def test_fit_refuses_output_path_before_loading(run: Run, tmp_path: Path, prompt_set: Path, name: str) -> None:
    (tmp_path / "file").touch()
    status, text, err = run("fit", "--prompts", prompt_set, "--out", tmp_path / name, "--model", tmp_path / "gone")
    refused((status, text, err), name)
    assert "Loading" not in text


def test_export_refuses_output_path_before_loading(run: Run, tmp_path: Path, pipeline_map: Path) -> None:
    given = ("export-lora", pipeline_map, "--model", tmp_path / "gone", "--out")
    refused(run(*given, tmp_path / "ink.txt"), "ink.txt is not a name for a LoRA; it must end in .safetensors")


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [("one", "a\nb", "There is 1 prompt on the source side"), ("a\nb", "b\na", "are the same")],
)
def test_fit_refuses_prompts_before_loading(run: Run, tmp_path: Path, source: str, target: str, reason: str) -> None:
    path = tmp_path / "set.txt"
    path.write_text(f"[source]\n{source}\n[target]\n{target}\n")
    status, text, err = run("fit", "--prompts", path, "--out", tmp_path / "a.safetensors", "--model", tmp_path / "gone")
    refused((status, text, err), reason)
    assert "Loading" not in text


def test_fit_refuses_missing_prompts(run: Run, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    out = ("--out", tmp_path / "out.safetensors", "--model", tiny)
    refused(run("fit", *out), "--prompts", "--source", "--target")
    refused(run("fit", *out, "--source", prompt_set), "--target")


def test_interrupt_ends_with_130(run: Run, tmp_path: Path, prompt_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformersModel, "from_pretrained", interrupt)
    status, _, err = run("fit", "--prompts", prompt_set, "--out", tmp_path / "a.safetensors", "--model", tmp_path)
    assert status == 130
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_refuses_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(run("demo", "--output", tmp_path / "file"), "file", "choose another")
