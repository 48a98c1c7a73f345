"""The real host: a ComfyUI in its default location, or at COMFYUI_PATH; and the oldest that is supported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from between_hosts import Exchange, exchanged
from controls import Control
from filelock import FileLock
from graphs import KINDS, Parts
from helpers import tiny_llama
from in_host import ResultsOf, run_inside
from text_graphs import REAL, SHORT, TINY
from transformers import OPTConfig, OPTForCausalLM

from act_core.models.transformers import TransformersModel
from tools.comfyui.frontend import CHROMIUM, Frontend, opened
from tools.comfyui.server import Graph, Host, started

OLDEST = "0.3.64"
# A node of another pack that returns a list: the host runs connected nodes once for each item.
LIST_OF_LINES = """
class ListOfLines:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {"multiline": True})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("STRING",), "run", "test", (True,)

    def run(self, text):
        return (text.splitlines(),)


NODE_CLASS_MAPPINGS = {"ListOfLines": ListOfLines}
"""
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
# Further packs, as files that the host loads.
PACKS = Path(__file__).with_name("packs")


@pytest.fixture(scope="session")
def host_python() -> Path:
    """The Python of the host's own environment."""
    host = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    python = host / ".venv" / "bin" / "python"
    if not (host / "main.py").is_file() or not python.is_file():
        pytest.skip(f"no ComfyUI with its .venv at {host}; set COMFYUI_PATH to yours")
    return python


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, in all of its worker processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def results_of(host_python: Path, shared_folder: Path) -> ResultsOf:
    """What a script without arguments prints as JSON; it runs once, in the worker that asks first."""

    def found(script: str) -> dict[str, Any]:
        kept = shared_folder / f"{script}.json"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                kept.write_text(run_inside(host_python, script), "utf-8")
        return json.loads(kept.read_text("utf-8"))

    return cache(found)


@pytest.fixture(scope="session")
def exchange(host_python: Path, shared_folder: Path) -> Exchange:
    """Weights and maps of diffusers and transformers that the host got, and its own maps."""
    return exchanged(host_python, shared_folder / "exchange")


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that one of the workers fills, while others wait for it."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a worker that failed
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def host(
    host_python: Path, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Host, None, None]:
    """A running ComfyUI with this pack, the demo model, and tiny random models of other kinds."""
    base = tmp_path_factory.mktemp("comfy") / "base"
    models = made_once(shared_folder / "models", lambda part: run_inside(host_python, "tiny_models.py", part))
    shutil.copytree(models, base / "models")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "list_of_lines.py").write_text(LIST_OF_LINES)
    for pack in PACKS.glob("*.py"):
        shutil.copy(pack, base / "custom_nodes")
    (base / "models_elsewhere").mkdir()
    paths = base / "extra_model_paths.yaml"
    paths.write_text(f"elsewhere:\n  base_path: {base}\n  LLM: models_elsewhere\n")
    with started(host_python, base, None, "--extra-model-paths-config", paths) as running:
        yield running


@pytest.fixture(scope="session")
def oldest(host_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Host, None, None]:
    """The oldest supported ComfyUI, in the environment of the other."""
    root = Path(os.environ.get("COMFYUI_OLDEST_PATH") or Path.home() / "comfy" / f"ComfyUI-{OLDEST}")
    if not (root / "main.py").is_file():
        pytest.skip(f"no ComfyUI {OLDEST} at {root}; set COMFYUI_OLDEST_PATH to yours")
    with started(host_python, tmp_path_factory.mktemp("oldest") / "base", root) as running:
        yield running


@pytest.fixture(scope="module")
def frontend(host: Host) -> Generator[Frontend, None, None]:
    """The page of the host."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine, so the frontend is not tested")
    with opened(host, 640, 480) as page:  # small, since drawing takes longer than all else
        yield page


@pytest.fixture(scope="session")
def saved(host: Host, shared_folder: Path) -> dict[str, str]:
    """A map of each model, fitted and saved by the nodes: file names by kind."""

    def fit(part: Path) -> None:
        for kind in KINDS:
            graph = Graph()
            act_map = Parts(graph, kind).fit()
            details = {"title": kind, "author": "", "description": "", "license": "CC0-1.0"}
            graph.add("SaveACTMap", act_map=act_map, name=kind, strength_low=0.0, strength_high=1.0, **details)
            text = host.shown(graph)["text"][0]
            assert text.startswith("Saved ")
            shutil.copy(text.split(" (")[0].removeprefix("Saved "), part / f"{kind}.safetensors")

    maps = made_once(shared_folder / "saved_maps", fit)
    shutil.copytree(maps, host.base / "models" / "act_maps", dirs_exist_ok=True)
    return {kind: f"{kind}.safetensors" for kind in KINDS}


@pytest.fixture(scope="session")
def models(host: Host, smollm2: TransformersModel) -> Path:
    """The real SmolLM2, tiny random models, and files that are not models, in the host's model folder."""
    folder = host.base / "models" / "LLM"
    chatty = tiny_llama(context=2048)
    chatty.tokenizer.chat_template = TEMPLATE
    for name, model in ((REAL, smollm2), (TINY, chatty), (SHORT, tiny_llama(context=64))):
        model.module.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    (folder / "no_model").mkdir()
    (folder / "no_model" / "config.json").write_text("{}")
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    # Named LLM in the user's own configuration, which does not hide models/LLM.
    chatty.module.save_pretrained(host.base / "models_elsewhere" / "configured")
    elsewhere = host.base / "another_drive"
    elsewhere.mkdir()
    (elsewhere / "far.gguf").write_bytes(b"GGUF" + bytes(64))
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    sizes: dict[str, Any] = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 1}
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    OPTForCausalLM(OPTConfig(vocab_size=257, num_attention_heads=4, **sizes, **ends)).save_pretrained(folder / "opt")
    chatty.tokenizer.save_pretrained(folder / "opt")
    return folder


@pytest.fixture(scope="session")
def control(host: Host, saved: dict[str, str]) -> Control:
    """Pictures that stay the same whatever happens."""
    return Control(host, saved["demo"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report prominently if the tests ran without the host."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/host/" in report.nodeid]
    if skipped:
        terminalreporter.section("NOT TESTED IN THE REAL HOST", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests were skipped:")
        for reason in dict.fromkeys(report.longrepr[2] for report in skipped):
            terminalreporter.line(reason.removeprefix("Skipped: "))
