"""Workflows that draw with maps that ship with the pack."""

from __future__ import annotations

from tools.comfyui.server import Graph

from .parts import INK, SHAPES, applied, draw, draw_prompt, loaded_map


def style_slider(graph: Graph) -> None:
    """The same noise, plain and steered."""
    graph.note = (
        "The map is between the loader and the sampler, as a LoRA is. The positive prompt is encoded with the steered "
        "CLIP, the negative prompt with the CLIP of the loader. Change *strength* and *strength_clip* on **Apply ACT "
        "Steering** and run again: 0 is the unchanged model, 1 the full effect."
    )
    loaded = graph.add("LoadACTDemoModel")
    steered = applied(graph, loaded[0], loaded[1], loaded_map(graph, INK), strength=0.8)
    draw_prompt(graph, loaded, steered, "cat")


def style_app(graph: Graph) -> None:
    """Opens as an app with a single slider, which is the strength on the model and on its text encoder."""
    graph.note = (
        "An app with a single slider, in ComfyUI's app mode (frontend 1.41 or later). The slider is the strength of "
        "the map on the model and on its text encoder."
    )
    loaded = graph.add("LoadACTDemoModel")
    slider = graph.add("PrimitiveFloat", value=0.8)
    graph.properties[slider.number] = {
        **{"min": 0, "max": 1.5, "precision": 2, "step": 0.05, "round": 0.05, "display": "gradientslider"},
        "gradient_stops": [{"offset": 0, "color": [128, 128, 128]}, {"offset": 1, "color": [245, 140, 40]}],
    }
    graph.labels[slider.number, "value"] = "strength"
    strengths = {"strength": slider, "strength_clip": slider, "calibrated": False}
    steered = graph.add("ACTMapLoader", model=loaded[0], clip=loaded[1], name=INK, **strengths)
    saved = draw_prompt(graph, loaded, steered, "penguin")
    graph.show_as_app([(slider, "value")], [saved])


def map_stack(graph: Graph) -> None:
    """Two styles at once, and a list of all maps that there are to choose from."""
    graph.note = (
        "Several maps at once: **ACT Map Stack** holds each with a strength and a switch. **List ACT Maps** shows the "
        "maps that you can choose from."
    )
    loaded = graph.add("LoadACTDemoModel")
    rows = {1: (SHAPES, 0.5, True), 2: (INK, 0.5, True)}
    values = {number: rows.get(number, ("None", 1.0, True)) for number in range(1, 9)}
    kinds = "map", "strength", "on"
    named = {f"{kind}_{number}": row[at] for number, row in values.items() for at, kind in enumerate(kinds)}
    steered = applied(graph, loaded[0], loaded[1], graph.add("ACTMapStack", **named), strength=1.0)
    graph.add("ListACTMaps", contains="plain")
    for subject in ("house", "rocket"):
        draw_prompt(graph, loaded, steered, subject, batch=2)


def removal(graph: Graph) -> None:
    """The same noise without a map, and with one that removes faces."""
    graph.note = (
        "A map that takes faces away, and leaves other pictures alone. Both parts draw the same prompt from the same "
        "noise, without the map and with it."
    )
    loaded = graph.add("LoadACTDemoModel")
    strengths = {"strength": 1.5, "strength_clip": 1.5, "calibrated": False}
    steered = graph.add("ACTMapLoader", model=loaded[0], clip=loaded[1], name="remove_face.safetensors", **strengths)
    for model, part in ((loaded, "without the map"), (steered, "with the map")):
        draw_prompt(graph, loaded, model, "grinning face, flat sticker", batch=2, part=part)


def regions(graph: Graph) -> None:
    """The left half steered, the right half not."""
    graph.note = (
        "A map in one half of the picture. **Create ACT Hook** steers the model in the region of the left prompt, and "
        "**Apply ACT Steering (CLIP only)** steers the text encoder that reads it."
    )
    loaded = graph.add("LoadACTDemoModel")
    act_map = loaded_map(graph, INK)
    hooks = graph.add("CreateACTHook", act_map=act_map, strength=1.0, calibrated=False)
    left = graph.add(
        "MaskComposite",
        destination=graph.add("SolidMask", value=0.0, width=64, height=64),
        source=graph.add("SolidMask", value=1.0, width=32, height=64),
        x=0,
        y=0,
        operation="add",
    )
    # A hook steers the diffusion model; the CLIP that encodes the region's prompt steers the text encoders.
    clip = graph.add("ApplyACTSteeringCLIP", clip=loaded[1], act_map=act_map, strength_clip=1.0, calibrated=False)
    ink = graph.add("CLIPTextEncode", text="red heart", clip=clip)
    text = graph.add("CLIPTextEncode", text="red heart", clip=loaded[1])
    graph.title(ink, "Left: in ink")
    graph.title(text, "Right: plain")
    own = {"strength": 1.0, "set_cond_area": "default"}
    steered = graph.add("ConditioningSetProperties", cond_NEW=ink, **own, mask=left, hooks=hooks)
    both = graph.add(
        "ConditioningSetPropertiesAndCombine",
        cond=steered,
        cond_NEW=text,
        **own,
        mask=graph.add("InvertMask", mask=left),
    )
    draw(graph, loaded, loaded[0], both, batch=4)


def text_encoder_slider(graph: Graph) -> None:
    """Only the prompt is steered: the picture model is unchanged."""
    graph.note = "A map on the text encoder alone: the picture model is unchanged, and only the prompt is steered."
    loaded = graph.add("LoadACTDemoModel")
    act_map = loaded_map(graph, INK)
    clip = graph.add("ApplyACTSteeringCLIP", clip=loaded[1], act_map=act_map, strength_clip=1.0, calibrated=False)
    draw(graph, loaded, loaded[0], graph.add("CLIPTextEncode", text="cat", clip=clip), batch=4)
