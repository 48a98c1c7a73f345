"""Workflows that measure, compare and change maps."""

from __future__ import annotations

from tools.comfyui.server import Graph

from .parts import CARD, CARTOON, INK, SAMPLER, applied, draw_prompt, loaded_map

SUBJECTS = "cat", "house", "rocket", "red heart"


def strength_sweep(graph: Graph) -> None:
    """One picture at several strengths, side by side."""
    graph.note = (
        "Draws the same noise at several strengths, as one labelled picture: the quickest way to see what a map does, "
        "and where it stops being useful."
    )
    loaded = graph.add("LoadACTDemoModel")
    # The prompt is encoded here, and by the sweep with the steered text encoders.
    prompt = graph.add("PrimitiveStringMultiline", value="cat")
    graph.title(prompt, "Prompt")
    swept = graph.add(
        "ACTStrengthSweep",
        model=loaded[0],
        act_map=loaded_map(graph, INK),
        positive=graph.add("CLIPTextEncode", text=prompt, clip=loaded[1]),
        negative=graph.add("CLIPTextEncode", text="", clip=loaded[1]),
        latent=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=4),
        vae=loaded[2],
        strengths="0, 0.25, 0.5, 0.75, 1, 1.25",
        **SAMPLER,
        clip=loaded[1],
        prompt=prompt,
        calibrated=False,
        branch="positive",
    )
    graph.add("SaveImage", images=swept[0], filename_prefix="act_sweep")


def calibrate_and_export(graph: Graph) -> None:
    """The range of a map is measured; then it is saved, exported as a LoRA, and used on its even scale."""
    graph.note = (
        "Measures the range of a map, saves the map with it, and exports the map as a LoRA. With *calibrated* on, "
        "strength 0 to 1 is the measured range in steps that look equal."
    )
    loaded = graph.add("LoadACTDemoModel")
    calibrated = graph.add(
        "CalibrateACTMap",
        model=loaded[0],
        clip=loaded[1],
        act_map=loaded_map(graph, INK),
        prompts="\n".join(SUBJECTS),
        targets="\n".join(f"{subject}, black ink icon" for subject in SUBJECTS),
        negative="",
        **{name: value for name, value in SAMPLER.items() if name != "seed"},
        width=0,
        height=0,
        seed=0,
        branch="positive",
    )
    graph.add("SaveACTMap", act_map=calibrated, name="ink_calibrated", title="Ink, calibrated", **CARD)
    exported = {"name": "ink_as_lora", "linear_layers": "compact", "level": -1.0}
    graph.add("ExportACTMapAsLoRA", model=loaded[0], clip=loaded[1], act_map=calibrated, **exported)
    steered = applied(graph, loaded[0], loaded[1], calibrated, strength=1.0, calibrated=True)
    draw_prompt(graph, loaded, steered, "rocket")


def compare_and_blend(graph: Graph) -> None:
    """Two maps are compared, one is pruned, and both become one map, which is probed and applied."""
    graph.note = "Compares two maps, prunes one of them, and blends both into one map, which is probed and applied."
    loaded = graph.add("LoadACTDemoModel")
    ink, cartoon = loaded_map(graph, INK), loaded_map(graph, CARTOON)
    graph.add("CompareACTMaps", act_map_a=ink, act_map_b=cartoon)
    pruned = graph.add("EditACTMap", act_map=ink, invert=False, scale=1.0, keep=0.9, keep_by="sites")
    weights = {"weight_1": 0.6, "weight_2": 0.6, "weight_3": 0.5, "weight_4": 0.5}
    mixed = graph.add("BlendACTMaps", act_map_1=pruned, act_map_2=cartoon, **weights)
    settings = {"prompt": "house", "strength": 1.0, "seed": 0, "steps": 8, "width": 0, "height": 0}
    graph.add("ProbeACTMap", model=loaded[0], clip=loaded[1], act_map=mixed, **settings)
    steered = applied(graph, loaded[0], loaded[1], mixed, strength=1.0)
    for subject in ("house", "rocket"):
        draw_prompt(graph, loaded, steered, subject, batch=2)
