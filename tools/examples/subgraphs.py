"""The blueprints of the pack: what several workflows do, as one node that the host lists under its subgraphs."""

from __future__ import annotations

from collections.abc import Callable

from tools.comfyui.blueprint import Blueprint

from .fitting import PICTURE_FIT
from .parts import INK, SAMPLER, applied, loaded_map


def style_slider() -> Blueprint:
    """A map on a model and on the positive prompt, with one strength."""
    graph = Blueprint(
        "Style slider",
        "Applies an ACT map to a model and to its positive prompt, with one strength. The negative prompt is encoded "
        "unsteered, since guidance cancels any change that is made to both prompts.",
    )
    model, clip = graph.inlet("model"), graph.inlet("clip")
    name, strength = graph.inlet("map", INK), graph.inlet("strength", 0.8)
    chosen = {"name": name, "strength": strength, "strength_clip": strength, "calibrated": False}
    steered = graph.add("ACTMapLoader", model=model, clip=clip, **chosen)
    positive = graph.add("CLIPTextEncode", text=graph.inlet("prompt", "cat"), clip=steered[1])
    negative = graph.add("CLIPTextEncode", text=graph.inlet("negative_prompt", ""), clip=clip)
    for name, node in {"model": steered, "positive": positive, "negative": negative, "report": steered[2]}.items():
        graph.outlet(name, node)
    return graph


def style_from_pictures() -> Blueprint:
    """A folder of pictures becomes a map, which is applied."""
    graph = Blueprint(
        "Style from pictures",
        "Fits an ACT map from a folder of pictures of one style, and applies it to the model and its text encoders.",
    )
    model, clip, vae = graph.inlet("model"), graph.inlet("clip"), graph.inlet("vae")
    pictures = graph.add("ACTPictureSet", name=graph.inlet("pictures", "sepia"), captions=True)
    shown = {"images": pictures[0], "captions": pictures[1]}
    settings = {**PICTURE_FIT, "steps": graph.inlet("steps", 60)}
    fitted = graph.add("FitACTMapFromImages", model=model, clip=clip, vae=vae, **shown, **settings)
    # Both branches, for styles that change all colours.
    steered = applied(graph, model, clip, fitted, graph.inlet("strength", 1.0), branch="both")
    for name, node in {"model": steered, "clip": steered[1], "act_map": fitted, "report": fitted[1]}.items():
        graph.outlet(name, node)
    return graph


def strength_sweep() -> Blueprint:
    """The same noise at several strengths of a map."""
    graph = Blueprint(
        "Strength sweep",
        "Samples the same noise at several strengths of an ACT map, and returns a labelled picture. Connect an empty "
        "latent for the size; each of its pictures becomes a row.",
    )
    model, clip, vae = graph.inlet("model"), graph.inlet("clip"), graph.inlet("vae")
    latent = graph.inlet("latent")
    act_map = loaded_map(graph, graph.inlet("map", INK))
    prompt = graph.inlet("prompt", "cat")
    settings = {name: graph.inlet(name, value) for name, value in SAMPLER.items()}
    swept = graph.add(
        "ACTStrengthSweep",
        model=model,
        act_map=act_map,
        positive=graph.add("CLIPTextEncode", text=prompt, clip=clip),
        negative=graph.add("CLIPTextEncode", text=graph.inlet("negative_prompt", ""), clip=clip),
        latent=latent,
        vae=vae,
        strengths=graph.inlet("strengths", "0, 0.25, 0.5, 0.75, 1, 1.25"),
        **settings,
        clip=clip,
        prompt=prompt,
        calibrated=False,
        branch="positive",
    )
    for name, node in {"grid": swept, "images": swept[1], "report": swept[2]}.items():
        graph.outlet(name, node)
    return graph


BLUEPRINTS: tuple[Callable[[], Blueprint], ...] = (style_slider, style_from_pictures, strength_sweep)
