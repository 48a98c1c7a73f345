"""Create ACT Hook: a map on the conditioning of a region, with keyframes and masks."""

from __future__ import annotations

import re
from typing import Any

import torch
from graphs import Parts, steered

from tools.comfyui.server import Graph, Host

PROMPT = "a cat on a mat"


def hooked(host: Host, name: str, *, strength: float = 1.0, until: float | None = None, **changes: Any) -> torch.Tensor:
    """The positive prompt with our hook on it."""
    graph = Graph()
    parts = Parts(graph, "demo")
    hooks = graph.add("CreateACTHook", act_map=graph.add("LoadACTMap", name=name), strength=strength)
    if until is not None:
        frames = graph.add("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
        frames = graph.add("CreateHookKeyframe", strength_mult=0.0, start_percent=until, prev_hook_kf=frames)
        hooks = graph.add("SetHookKeyframes", hooks=hooks, hook_kf=frames)
    own = {"strength": 1.0, "set_cond_area": "default"}
    positive = graph.add("ConditioningSetProperties", cond_NEW=parts.encoded(PROMPT), hooks=hooks, **own)
    parts.sampled(parts.model, positive, **changes)
    return host.latent(host.run(graph))


def test_hook_equals_positive_branch(host: Host, saved: dict[str, str]) -> None:
    for strength in (0.5, 1.0):
        expected = steered(host, "demo", saved["demo"], strength=strength, strength_clip=0.0)
        # Another batch, so another order of rounding, over all steps.
        torch.testing.assert_close(hooked(host, saved["demo"], strength=strength), expected, atol=1e-2, rtol=1e-2)


def test_hook_reports_in_the_console_how_many_sites_fired(host: Host, saved: dict[str, str]) -> None:
    before = len(host.log.read_text())
    hooked(host, saved["demo"], strength=0.75)
    reports = [line for line in host.log.read_text()[before:].splitlines() if "sites fired" in line]
    assert len(reports) == 1
    count = re.search(r"(\d+) of (\d+) sites fired", reports[0])
    assert count is not None
    assert count[1] == count[2]


def test_keyframes_end_hook(host: Host, saved: dict[str, str]) -> None:
    # Not at the very sigma of a step, where keyframes and our window count differently.
    expected = steered(host, "demo", saved["demo"], strength_clip=0.0, end_percent=0.45)
    torch.testing.assert_close(hooked(host, saved["demo"], until=0.45), expected, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(steered(host, "demo", saved["demo"], strength_clip=0.0), expected, atol=0.1)


def test_masked_hook_leaves_other_half_alone(host: Host, saved: dict[str, str]) -> None:
    def drawn(*, hook: bool) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        left = graph.add(
            "MaskComposite",
            destination=graph.add("SolidMask", value=0.0, width=64, height=64),
            source=graph.add("SolidMask", value=1.0, width=32, height=64),
            x=0,
            y=0,
            operation="add",
        )
        own = {"strength": 1.0, "set_cond_area": "default"}
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        hooks = {"hooks": graph.add("CreateACTHook", act_map=loaded, strength=1.0)} if hook else {}
        first = graph.add("ConditioningSetProperties", cond_NEW=parts.encoded(PROMPT), mask=left, **own, **hooks)
        both = graph.add(
            "ConditioningSetPropertiesAndCombine",
            cond=first,
            cond_NEW=parts.encoded(PROMPT),
            mask=graph.add("InvertMask", mask=left),
            **own,
        )
        parts.sampled(parts.model, both, steps=1)
        return host.latent(host.run(graph))

    change = (drawn(hook=True) - drawn(hook=False)).abs()
    assert change[..., :4].max() > 1e-2
    assert change[..., 4:].max() == 0
