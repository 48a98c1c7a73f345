"""Workflows that fit a map of the demo model."""

from __future__ import annotations

from tools.comfyui.server import Graph

from .parts import CARD, applied, draw_prompt

PICTURE_FIT = {
    **{"sites": "auto", "steps": 40, "width": 0, "height": 0, "seed": 0, "pattern": "", "estimator": "refined"},
    **{"source_captions": "", "levels": "0.95, 0.85, 0.7, 0.5, 0.3", "samples": 0, "components": "both"},
    "name_pictures": True,
}


def fit_your_own(graph: Graph) -> None:
    """Two lists of prompts, a map, a picture, a file."""
    graph.note = (
        "Fits a map from two lists of prompts, saves it as *models/act_maps/my_map.safetensors* and applies it. Put "
        "text of your own in place of **ACT Prompt Set**: the same subjects on both sides, one prompt per line. "
        "Before you share a map, fill in title, author and license on **Save ACT Map**."
    )
    loaded = graph.add("LoadACTDemoModel")
    prompts = graph.add("ACTPromptSet", name="plain_to_ink.txt", count=64)
    settings = {"sites": "auto", "components": "both", "estimator": "linear", "order": "causal"}
    fitted = graph.add(
        "FitACTMap",
        model=loaded[0],
        clip=loaded[1],
        source=prompts[0],
        target=prompts[1],
        **settings,
        support="unbounded",
        samples=64,
        width=0,
        height=0,
        seed=0,
        pattern="",
    )
    graph.add("SaveACTMap", act_map=fitted, name="my_map", title="", **CARD)
    graph.add("InspectACTMap", act_map=fitted)
    draw_prompt(graph, loaded, applied(graph, loaded[0], loaded[1], fitted, strength=1.0), "rocket")


def style_from_pictures(graph: Graph) -> None:
    """A folder of pictures, a map, pictures without and with it."""
    graph.note = (
        "A map from a folder of pictures. Put yours into a folder of their own in *models/act_picture_sets*, and "
        "choose it in **ACT Picture Set**. *branch* is *both* because this style changes all colours; for other "
        "styles, try *positive*. The map is saved as *my_style*."
    )
    loaded = graph.add("LoadACTDemoModel")
    pictures = graph.add("ACTPictureSet", name="sepia", captions=True)
    fitted = graph.add(
        "FitACTMapFromImages",
        model=loaded[0],
        clip=loaded[1],
        vae=loaded[2],
        images=pictures[0],
        captions=pictures[1],
        **PICTURE_FIT,
    )
    graph.add("SaveACTMap", act_map=fitted[0], name="my_style", title="", **CARD)
    # A style that changes all colours, the background included.
    steered = applied(graph, loaded[0], loaded[1], fitted[0], strength=1.0, branch="both")
    for subject in ("cat", "house"):
        draw_prompt(graph, loaded, steered, subject, batch=2)
