"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command_line import SOURCE, TARGET, Run
from helpers import MIXED_SITES, mixed, prompts, tiny_llama
from pipelines import PIPELINES, SIZE, one_encoder

from act_core import ActMap, fit
from act_core.cli import main
from act_core.fitting.memory import BatchPlan, SampleMemory
from act_core.models.diffusers import DiffusersModel


@pytest.fixture(scope="session")
def fitted() -> ActMap:
    """A map with sites of every layout and observed support."""
    return fit(mixed(), prompts("source", 6), prompts("target", 5), sites=MIXED_SITES, support="observed", seed=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path to save a map to."""
    return tmp_path / "calm.safetensors"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line; returns exit status, output and errors."""

    def running(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # raised by argparse
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_llama()
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompt_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mood.txt"
    path.write_text("\n".join(["[source] gloomy", *SOURCE, "[target] cheerful", *TARGET]), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_map(tmp_path_factory: pytest.TempPathFactory, tiny: Path, prompt_set: Path) -> Path:
    """A map of the tiny model, made by the command line."""
    out = tmp_path_factory.mktemp("maps") / "mood.safetensors"
    assert main(["fit", "--model", str(tiny), "--prompts", str(prompt_set), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random pipeline."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    one_encoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline_map(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path, prompt_set: Path) -> Path:
    """A map of the tiny pipeline, made by the command line."""
    out = tmp_path_factory.mktemp("maps") / "light.safetensors"
    assert main(["fit", "--model", str(tiny_pipeline), "--prompts", str(prompt_set), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def pipeline() -> Callable[[str], Any]:
    """Creates a tiny random pipeline of a kind; the second call returns the same one."""
    return cache(lambda kind: PIPELINES[kind]())


@pytest.fixture(params=PIPELINES)
def model(request: pytest.FixtureRequest, pipeline: Callable[[str], Any]) -> DiffusersModel:
    """A pipeline of each kind."""
    return DiffusersModel(pipeline(request.param), request.param, size=SIZE)


@pytest.fixture
def unet(pipeline: Callable[[str], Any]) -> DiffusersModel:
    """A Stable Diffusion pipeline, whose diffusion model is a UNet."""
    return DiffusersModel(pipeline("stable diffusion"), size=SIZE)


@pytest.fixture
def four_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any budget, samples run in groups of four."""
    monkeypatch.setattr(SampleMemory, "plan", lambda *_: BatchPlan(4, 4))


@pytest.fixture
def always_parks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any budget parks, whatever its size."""

    def plan(self: SampleMemory, count: int, batch: int, *_: Any) -> BatchPlan:
        return BatchPlan(count, batch, parked=True)

    monkeypatch.setattr(SampleMemory, "plan", plan)
