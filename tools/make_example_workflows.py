"""Writes ``example_workflows``: each as a graph, in API form, and with its own output as a cover.

The covers are also the pictures on the help pages of some nodes.

    python tools/make_example_workflows.py [--keep-covers] [NAME ...]

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.comfyui.server import Graph, Host, Node, started  # noqa: E402
from tools.comfyui.workflow import add_titles, as_graph  # noqa: E402

FOLDER = ROOT / "example_workflows"
MAP = "plain_to_ink.safetensors"
TEXT_MAP = "text_night.safetensors"
LANGUAGE_MODEL = "SmolLM2-135M-Instruct (small default)"
INSTRUCTION = (
    "Expand this short idea into a detailed prompt for an image model. Describe the subject, the place, the light and "
    "the mood in one or two sentences."
)
PICTURE_SET = "sepia"
PICTURE_FIT = {
    **{"sites": "auto", "steps": 40, "width": 0, "height": 0, "seed": 0, "pattern": "", "estimator": "refined"},
    **{"source_captions": "", "levels": "0.95, 0.85, 0.7, 0.5, 0.3", "samples": 0, "components": "both"},
    "name_pictures": True,
}
SAMPLER = {"seed": 0, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
COVER = 512
# Nodes whose help pages show the cover of a workflow.
HELP_PAGES = {
    "style_slider": "ApplyACTSteering",
    "fit_your_own": "FitACTMap",
    "style_from_pictures": "FitACTMapFromImages",
    "regions": "CreateACTHook",
    "strength_sweep": "ACTStrengthSweep",
}


def style_slider(graph: Graph) -> None:
    """The same noise, plain and steered."""
    loaded = graph.add("LoadACTDemoModel")
    act_map = _act_map(graph, MAP)
    steered = _applied(graph, loaded, act_map, strength=0.8)
    _draw(graph, loaded, steered[0], graph.add("CLIPTextEncode", text="cat", clip=steered[1]), batch=4)


def style_from_pictures(graph: Graph) -> None:
    """A folder of pictures, a map, pictures without and with it."""
    loaded = graph.add("LoadACTDemoModel")
    pictures = graph.add("ACTPictureSet", name=PICTURE_SET, captions=True)
    fitted = graph.add(
        "FitACTMapFromImages",
        model=loaded[0],
        clip=loaded[1],
        vae=loaded[2],
        images=pictures[0],
        captions=pictures[1],
        **PICTURE_FIT,
    )
    steered = _applied(graph, loaded, fitted[0], strength=1.0)
    for subject in ("cat", "house"):
        _draw(graph, loaded, steered[0], graph.add("CLIPTextEncode", text=subject, clip=steered[1]), batch=2)


def fit_your_own(graph: Graph) -> None:
    """Two lists of prompts, a map, a picture, a file."""
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
    details = {"title": "My map", "author": "", "description": "", "license": "CC0-1.0", "usage_hint": "", "tags": ""}
    ranges = {"strength_low": 0.0, "strength_high": 1.0, "keep_prompts": True, "sidecars": False}
    graph.add("SaveACTMap", act_map=fitted, name="my_map", **details, **ranges)
    graph.add("InspectACTMap", act_map=fitted)
    steered = _applied(graph, loaded, fitted, strength=1.0)
    _draw(graph, loaded, steered[0], graph.add("CLIPTextEncode", text="rocket", clip=steered[1]), batch=4)


def strength_sweep(graph: Graph) -> None:
    """One picture at several strengths, side by side."""
    loaded = graph.add("LoadACTDemoModel")
    swept = graph.add(
        "ACTStrengthSweep",
        model=loaded[0],
        act_map=_act_map(graph, MAP),
        positive=graph.add("CLIPTextEncode", text="cat", clip=loaded[1]),
        negative=graph.add("CLIPTextEncode", text="", clip=loaded[1]),
        latent=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=4),
        vae=loaded[2],
        strengths="0, 0.25, 0.5, 0.75, 1, 1.25",
        **SAMPLER,
        clip=loaded[1],
        prompt="cat",
        calibrated=False,
    )
    graph.add("SaveImage", images=swept[0], filename_prefix="act_sweep")


def regions(graph: Graph) -> None:
    """The left half steered, the right half not."""
    loaded = graph.add("LoadACTDemoModel")
    act_map = _act_map(graph, MAP)
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
    own = {"strength": 1.0, "set_cond_area": "default"}
    steered = graph.add("ConditioningSetProperties", cond_NEW=ink, **own, mask=left, hooks=hooks)
    both = graph.add(
        "ConditioningSetPropertiesAndCombine",
        cond=steered,
        cond_NEW=text,
        **own,
        mask=graph.add("InvertMask", mask=left),
    )
    _draw(graph, loaded, loaded[0], both, batch=4)


def text_encoder_slider(graph: Graph) -> None:
    """Only the prompt is steered: the picture model is unchanged."""
    loaded = graph.add("LoadACTDemoModel")
    act_map = _act_map(graph, MAP)
    clip = graph.add("ApplyACTSteeringCLIP", clip=loaded[1], act_map=act_map, strength_clip=1.0, calibrated=False)
    _draw(graph, loaded, loaded[0], graph.add("CLIPTextEncode", text="cat", clip=clip), batch=4)


def steered_prompt(graph: Graph) -> None:
    """A language model, steered by a map, expands an idea; the text is the prompt of a picture."""
    loaded = graph.add("LoadACTDemoModel")
    language_model = graph.add("LoadACTLanguageModel", name=LANGUAGE_MODEL, dtype="auto", device="auto")
    written = graph.add(
        "ACTSteeredText",
        language_model=language_model,
        prompt="a cat in a street",
        instruction=INSTRUCTION,
        strength=1.0,
        mode="auto",
        max_length=80,
        temperature=0.8,
        top_p=0.95,
        repetition_penalty=1.1,
        seed=0,
        compare=True,
        act_map=_act_map(graph, TEXT_MAP),
    )
    for output in range(3):
        graph.add("PreviewAny", source=written[output])
    # The demo model reads only 16 tokens, so the subject comes first.
    prompt = graph.add("StringConcatenate", string_a="cat", string_b=written[0], delimiter=", ")
    _draw(graph, loaded, loaded[0], graph.add("CLIPTextEncode", text=prompt, clip=loaded[1]), batch=4)


WORKFLOWS: tuple[Callable[[Graph], None], ...] = (
    style_slider,
    fit_your_own,
    style_from_pictures,
    strength_sweep,
    regions,
    text_encoder_slider,
    steered_prompt,
)


def _act_map(graph: Graph, name: str) -> Node:
    return graph.add("LoadACTMap", name=name, allow_other_architecture=False)


def _applied(graph: Graph, loaded: Node, act_map: Node, strength: float) -> Node:
    window = {"start_percent": 0.0, "end_percent": 1.0, "branch": "positive"}
    strengths = {"strength": strength, "strength_clip": strength}
    everywhere = {"sites": "", "blocks": "all", "schedule": "constant"}
    flags = {"calibrated": False, "as_weights": False}
    inputs = {"model": loaded[0], "clip": loaded[1], "act_map": act_map, **strengths, **window, **everywhere}
    return graph.add("ApplyACTSteering", **inputs, **flags)


def _draw(graph: Graph, loaded: Node, model: Node, positive: Node, batch: int) -> None:
    samples = graph.add(
        "KSampler",
        model=model,
        **SAMPLER,
        positive=positive,
        # With the CLIP of the loader: guidance cancels any change that is made to both prompts.
        negative=graph.add("CLIPTextEncode", text="", clip=loaded[1]),
        latent_image=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=batch),
        denoise=1.0,
    )
    images = graph.add("VAEDecode", samples=samples, vae=loaded[2])
    larger = {"upscale_method": "nearest-exact", "width": 256, "height": 256, "crop": "disabled"}
    shown = graph.add("ImageScale", image=images, **larger)
    graph.add("SaveImage", images=shown, filename_prefix="act")


def write(host: Host, build: Callable[[Graph], None], *, cover: bool) -> None:
    """Write a workflow in both forms, and its cover unless that is kept."""
    graph = Graph()
    build(graph)
    listed = host.get("/object_info")
    add_titles(graph.prompt, listed)
    name = build.__name__
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    (FOLDER / "api" / f"{name}.json").write_text(json.dumps(graph.prompt, indent=2) + "\n")
    (FOLDER / f"{name}.json").write_text(json.dumps(as_graph(graph.prompt, listed), indent=1) + "\n")
    if cover:
        paths = host.images(host.run(graph))
        images: list[Image.Image] = [Image.open(path) for path in paths if "output" in path.parts]
        picture = _cover(images)
        picture.save(FOLDER / f"{name}.jpg", quality=88)
        if name in HELP_PAGES:
            picture.save(ROOT / "web" / "docs" / HELP_PAGES[name] / f"{name}.png", optimize=True)


def _cover(images: list[Image.Image]) -> Image.Image:
    """A single picture unchanged, or several in a square."""
    if len(images) == 1:
        (image,) = images
        return image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    side = images[0].width
    cover = Image.new("RGB", (2 * side, 2 * side))
    for number, image in enumerate(images[:4]):
        cover.paste(image, (side * (number % 2), side * (number // 2)))
    return cover.resize((COVER, COVER), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows, or some of them.")
    parser.add_argument("names", nargs="*", default=[build.__name__ for build in WORKFLOWS])
    parser.add_argument("--keep-covers", action="store_true", help="do not draw the covers again")
    args = parser.parse_args()
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
    ):
        for build in (build for build in WORKFLOWS if build.__name__ in args.names):
            write(host, build, cover=not args.keep_covers)
            print(f"wrote {FOLDER / build.__name__}.json")


if __name__ == "__main__":
    main()
