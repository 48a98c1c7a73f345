"""Language models in the graph, over HTTP: load, fit, write."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from graphs import Parts, apply, free
from in_host import has_default_model, run_inside
from text_graphs import INSTRUCTION, LENGTH, PROMPT, REAL, SHORT, TINY, fit_of, refused, text_of, written

from act_core.prompts import load_prompt_set
from tools.comfyui.server import PACK, Graph, Host


@pytest.fixture(scope="module")
def text_map(host: Host, models: Path) -> str:
    """A map of the real model, fitted and saved in the graph."""
    return fitted(host, "text", 12)


def fitted(host: Host, name: str, count: int, **changes: Any) -> str:
    """The file of a map of the real model, fitted on the first prompts of each side of a set."""
    prompts = load_prompt_set(PACK / "prompt_sets" / "gloomy_to_cheerful.txt")
    graph = Graph()
    sides = ("\n".join(side[:count]) for side in (prompts.source, prompts.target))
    act_map = fit_of(graph, REAL, *sides, **changes)
    details = {"title": name, "author": "", "description": "", "license": "CC0-1.0"}
    graph.add("SaveACTMap", act_map=act_map, name=name, strength_low=0.0, strength_high=1.0, **details)
    graph.add("PreviewAny", source=act_map[1])
    outputs = list(host.run(graph).outputs.values())
    assert "30" in next(text for output in outputs for text in output["text"] if "sites" in text)
    saved = next(text for output in outputs for text in output["text"] if text.startswith("Saved "))
    return Path(saved.split(" (")[0].removeprefix("Saved ")).name


def test_text_equals_that_of_core(host: Host, host_python: Path, models: Path, text_map: str) -> None:
    act_map = host.base / "models" / "act_maps" / text_map
    expected = json.loads(
        run_inside(host_python, "steered_text.py", models / REAL, act_map, PROMPT, INSTRUCTION, str(LENGTH))
    )
    for mode in ("continue", "chat"):
        text, unsteered, report = written(host, REAL, mode=mode, act_map=text_map, compare=True)
        assert text == expected[mode]
        assert unsteered == expected[f"{mode} unsteered"]
        assert text != unsteered
        assert "30 of 30 sites fired" in report
    # Five tokens with the map, and five without it; the host leaves out what comes too fast.
    values = [value for value, _ in expected["progress"]]
    assert values[0] < values[-1] == 10
    assert {total for _, total in expected["progress"]} == {10}


def test_strength_zero_equals_no_map(host: Host, text_map: str) -> None:
    plain = written(host, REAL)[0]
    assert written(host, REAL, act_map=text_map, strength=0.0)[0] == plain
    assert written(host, REAL, act_map=text_map, strength=1.0)[0] != plain
    # Run again after a steered one; another temperature that takes the same tokens keeps the host from its cache.
    assert written(host, REAL, temperature=0.80000001)[0] == plain


def test_seed_changes_text(host: Host, models: Path) -> None:
    assert written(host, REAL, seed=4, temperature=1.5)[0] != written(host, REAL, seed=5, temperature=1.5)[0]


def test_auto_mode_follows_chat_template(host: Host, models: Path) -> None:
    assert written(host, TINY, mode="auto")[0] == written(host, TINY, mode="chat")[0]
    assert written(host, SHORT, mode="auto", max_length=4)[0].startswith(PROMPT)
    assert "has no chat template; let it continue the bare text instead" in refused(host, SHORT, mode="chat")


@pytest.mark.parametrize("format", ["question", "answer"])
def test_fit_in_chat_template(host: Host, models: Path, text_map: str, format: str) -> None:
    name = fitted(host, format, 4, format=format, system="You write.", user="Go on:")
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=name))
    output = host.shown(graph)
    assert f"fitted in the chat template, each prompt as a{'n' * (format == 'answer')} {format}" in output["text"][0]
    assert written(host, REAL, mode="chat", act_map=name)[0] != written(host, REAL, mode="chat", act_map=text_map)[0]


@pytest.mark.parametrize("prompt", ["ein Café, größer", "🦊 in the ❄️", "مدينة قديمة عند البحر", "夜の港", "a\u202eb"])
def test_prompt_in_any_script(host: Host, models: Path, prompt: str) -> None:
    text, _, report = written(host, REAL, prompt, max_length=6)
    assert text.startswith(prompt)
    assert report == "No map is connected."


def test_dtype_and_device(host: Host, models: Path) -> None:
    texts: dict[str, str] = {}
    for dtype in ("auto", "float32", "bfloat16"):
        graph = Graph()
        model = graph.add("LoadACTLanguageModel", name=REAL, dtype=dtype, device="cpu")
        settings = {"instruction": INSTRUCTION, "strength": 1.0, "mode": "continue", "max_length": LENGTH, "seed": 3}
        settings |= {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "compare": False}
        text = graph.add("ACTSteeredText", language_model=model, prompt=PROMPT, **settings)
        graph.add("PreviewAny", source=text)
        texts[dtype] = host.shown(graph)["text"][0]
    assert texts["float32"] == texts["auto"]  # of a CPU
    assert texts["bfloat16"] not in ("", texts["float32"])
    assert texts["bfloat16"].startswith(PROMPT)


def test_prompt_set_feeds_fit(host: Host, models: Path) -> None:
    graph = Graph()
    prompts = graph.add("ACTPromptSet", name="gloomy_to_cheerful.txt", count=4)
    fit = fit_of(graph, TINY, prompts[0], prompts[1])
    graph.add("PreviewAny", source=fit[1])
    output = host.shown(graph)
    assert "prompts         4 source, such as 'Rain has fallen on" in output["text"][0]


def test_text_fit_takes_a_model_without_a_record(host: Host, models: Path) -> None:
    graph = Graph()
    act_map = fit_of(graph, "opt", "a cat\na dog", "the cat\nthe dog")
    graph.add("PreviewAny", source=act_map[1])
    text_of(graph, "opt", act_map=act_map, max_length=3)
    reports = "\n".join(text for output in host.run(graph).outputs.values() for text in output["text"])
    assert "sites of the language model found by rule" in reports
    assert "1 of 1 sites fired" in reports


def listed(host: Host) -> list[str]:
    kind, *options = host.get("/object_info/LoadACTLanguageModel")["LoadACTLanguageModel"]["input"]["required"]["name"]
    return options[0]["options"] if kind == "COMBO" else kind


def test_models_are_listed(host: Host, models: Path) -> None:
    names = listed(host)
    assert {REAL, TINY, SHORT, "no_model", "broken.gguf", "linked/far.gguf", "configured"} < set(names)
    assert "default" in names[0]


def test_default_model_loads_or_names_its_package(host: Host, host_python: Path, models: Path) -> None:
    default = listed(host)[0]
    if not has_default_model(host_python):
        assert "pip install" in refused(host, default)
    else:
        assert written(host, default, temperature=0.0, max_length=8)[0].startswith(PROMPT)


def test_maps_for_other_models_are_refused(host: Host, saved: dict[str, str], text_map: str) -> None:
    error = refused(host, REAL, act_map=saved["sd3"])
    assert "'sd3' was fitted on" in error
    assert "LlamaForCausalLM" in error
    error = refused(host, TINY, act_map=text_map)
    assert "(language_model/model.layers.0.self_attn.o_proj: 576 in the map, 32 here)" in error
    for clip in (False, True):
        graph = Graph()
        parts = Parts(graph, "demo")
        act_map = graph.add("LoadACTMap", name=text_map)
        parts.sampled(apply(graph, parts.model, act_map, parts.clip if clip else None)[0])
        assert "language_model" in host.fail(graph).error


# --- interrupts and memory


def test_interrupted_text_leaves_model_unchanged(host: Host, text_map: str) -> None:
    plain = written(host, REAL, seed=11)[0]
    graph = Graph()
    text_of(graph, REAL, act_map=text_map, max_length=2000, repetition_penalty=1.3)
    assert host.interrupted(graph, 2.0) == "interrupted"
    assert written(host, REAL, seed=11, temperature=0.80000001)[0] == plain


def test_interrupted_text_fit_leaves_model_unchanged(host: Host, text_map: str) -> None:
    plain = written(host, REAL, seed=12)[0]
    graph = Graph()
    lines = {
        side: "\n".join(f"{side} {'word ' * 40}{number}" for number in range(400)) for side in ("source", "target")
    }
    fit = fit_of(graph, REAL, **lines, sites="all")
    graph.add("InspectACTMap", act_map=fit)
    assert host.interrupted(graph, 3.0) == "interrupted"
    assert written(host, REAL, seed=12, temperature=0.80000001)[0] == plain


def test_memory_is_freed(host: Host, models: Path, text_map: str) -> None:
    """Counted over the host's tensors: how much its process holds also depends on its allocator and on other models."""

    def tensors() -> int:
        return host.get("/test/bytes_of_tensors")

    def freed(limit: float) -> int:
        """What is left; the host answers before it has collected its garbage."""
        free(host)
        end = time.monotonic() + 60
        while tensors() > limit and time.monotonic() < end:
            time.sleep(0.2)
        return tensors()

    weights = (models / REAL / "model.safetensors").stat().st_size
    written(host, REAL, act_map=text_map, seed=20)
    before = freed(tensors() - 0.99 * weights)
    written(host, REAL, act_map=text_map, seed=21)
    assert tensors() - before > 0.99 * weights
    assert freed(before + 0.01 * weights) < before + 0.01 * weights
