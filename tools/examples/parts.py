"""What several example workflows are made of."""

from __future__ import annotations

from typing import Any

from act_core.settings import Branch
from tools.comfyui.server import Graph, Node

INK, CARTOON, SHAPES = (f"plain_to_{style}.safetensors" for style in ("ink", "cartoon", "shapes"))
SAMPLER: dict[str, Any] = {"seed": 0, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
# What Save ACT Map writes beside the map, except the title: its defaults.
CARD: dict[str, Any] = {
    **{"author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0},
    **{"usage_hint": "", "tags": "", "keep_prompts": True, "sidecars": False},
}


def loaded_map(graph: Graph, name: str | Node) -> Node:
    return graph.add("LoadACTMap", name=name, allow_other_architecture=False)


def applied(
    graph: Graph,
    model: Node,
    clip: Node,
    act_map: Node,
    strength: float | Node,
    *,
    branch: Branch = "positive",
    calibrated: bool = False,
) -> Node:
    """Apply ACT Steering with its defaults."""
    window = {"start_percent": 0.0, "end_percent": 1.0, "branch": branch}
    strengths = {"strength": strength, "strength_clip": strength}
    everywhere = {"sites": "", "blocks": "all", "schedule": "constant"}
    flags = {"calibrated": calibrated, "as_weights": False}
    inputs = {"model": model, "clip": clip, "act_map": act_map, **strengths, **window, **everywhere}
    return graph.add("ApplyACTSteering", **inputs, **flags)


def draw(graph: Graph, loaded: Node, model: Node, positive: Node, batch: int, part: str = "") -> Node:
    """Sample, decode, enlarge and save pictures; returns the node that saves them.

    Args:
        graph: the workflow.
        loaded: the node that loads the model.
        model, positive: what draws, and the conditioning.
        batch: how many pictures.
        part: what distinguishes these pictures from others of the same workflow, for titles and file names.
    """
    # With the CLIP of the loader: guidance cancels any change that is made to both prompts.
    negative = graph.add("CLIPTextEncode", text="", clip=loaded[1])
    samples = graph.add(
        "KSampler",
        model=model,
        **SAMPLER,
        positive=positive,
        negative=negative,
        latent_image=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=batch),
        denoise=1.0,
    )
    images = graph.add("VAEDecode", samples=samples, vae=loaded[2])
    larger = {"upscale_method": "nearest-exact", "width": 256, "height": 256, "crop": "disabled"}
    shown = graph.add("ImageScale", image=images, **larger)
    saved = graph.add("SaveImage", images=shown, filename_prefix="_".join(["act", *part.split()[:1]]))
    if part:
        named = {"Prompt": positive, "Negative prompt": negative, "KSampler": samples, "Save Image": saved}
        for title, node in named.items():
            graph.title(node, f"{title}, {part}")
    return saved


def draw_prompt(graph: Graph, loaded: Node, steered: Node, text: str, batch: int = 4, part: str = "") -> Node:
    """Pictures of a prompt, by a model and with the text encoder beside it."""
    return draw(graph, loaded, steered[0], graph.add("CLIPTextEncode", text=text, clip=steered[1]), batch, part)
