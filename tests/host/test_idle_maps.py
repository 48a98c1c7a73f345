"""A map that does not act in a run: the console gives the reason, and the run succeeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain

from tools.comfyui.server import Graph, Host

IDLE = "did not act in this run"
WINDOW = f"'demo' {IDLE}: none of its steps lies in the window of the map, "


def run(host: Host, name: str, sampling: dict[str, Any], **changes: Any) -> tuple[str, torch.Tensor]:
    """The console output of a steered run, and the latent."""
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=name), **changes)[0], **sampling)
    before = len(host.log.read_text())
    latent = host.latent(host.run(graph))
    return host.log.read_text()[before:], latent


@pytest.mark.parametrize(
    ("start", "end"),
    [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.51, 0.52)],  # the last one lies between two of six steps
)
def test_console_reports_window_without_steps(host: Host, saved: dict[str, str], start: float, end: float) -> None:
    text, latent = run(host, saved["demo"], {}, start_percent=start, end_percent=end)
    assert text.count(IDLE) == 1
    assert f"{WINDOW}{start:g} to {end:g} of the schedule; change start_percent or end_percent." in text
    assert torch.equal(latent, plain(host, "demo"))


def test_console_reports_window_that_ended_before_a_partial_denoise(host: Host, saved: dict[str, str]) -> None:
    text, _ = run(host, saved["demo"], {"denoise": 0.4}, end_percent=0.3)
    assert text.count(IDLE) == 1
    assert WINDOW in text


def test_console_reports_absent_branch(host: Host, saved: dict[str, str]) -> None:
    text, latent = run(host, saved["demo"], {"cfg": 1.0}, branch="negative")
    assert f"'demo' {IDLE}: the model ran without the negative branch, as it does at cfg 1; raise cfg" in text
    assert torch.equal(latent, plain(host, "demo", cfg=1.0))


def test_console_does_not_warn_when_the_map_acts(host: Host, saved: dict[str, str]) -> None:
    text, _ = run(host, saved["demo"], {}, end_percent=0.31)
    assert "14 of 14 sites fired" in text
    assert IDLE not in text


def test_split_run_succeeds_when_one_part_is_outside_the_window(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    model = apply(graph, parts.model, loaded, end_percent=0.5)[0]
    conds = {"positive": parts.encoded("a cat"), "negative": parts.encoded("")}
    shared: dict[str, Any] = {"model": model, "noise_seed": 1, "steps": 6, "cfg": 3.0, "sampler_name": "euler"}
    shared |= {"scheduler": "simple", **conds}
    latent = graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    for first, last, noise, rest in ((0, 3, "enable", "enable"), (3, 6, "disable", "disable")):
        latent = graph.add(
            "KSamplerAdvanced",
            latent_image=latent,
            start_at_step=first,
            end_at_step=last,
            add_noise=noise,
            return_with_leftover_noise=rest,
            **shared,
        )
    graph.add("SaveLatent", samples=latent, filename_prefix="split")
    text = host.console(graph)
    assert text.count("14 of 14 sites fired") == 1
    assert text.count(IDLE) == 1


def test_report_of_apply_reaches_the_history(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    applied = apply(graph, parts.model, loaded, parts.clip, strength=0.61, strength_clip=0.0, end_percent=0.5)
    graph.add("PreviewAny", source=applied[2])
    parts.sampled(applied[0])
    outputs = host.run(graph).outputs
    (report,) = outputs[applied.number]["text"]
    first, second = report.splitlines()
    assert first == "diffusion_model: 14 of 14 sites found, strength 0.61, positive branch, 0 to 0.5 of the schedule."
    assert second.startswith("clip_l: ")
    assert second.endswith("sites found, strength 0.")
    assert any(output["text"] == [report] for number, output in outputs.items() if number != applied.number)
