"""Fits the maps of ``pretrained_maps`` for the demo model, with the nodes, in ComfyUI.

    python -m tools.fit_demo_maps [NAME ...]

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH. The same prompts, pictures, settings and versions
give the same maps. ``python -m benchmarks.demo_maps`` measures their effect.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from act_core.prompts import load_prompt_set
from act_core.settings import Branch
from tools.comfyui.server import Graph, Host, Node, started

ROOT = Path(__file__).parents[1]
PLAIN = "plain_to_ink"
PROMPTS = 128
SIDE = 128
FIT: Mapping[str, Any] = {"sites": "auto", "components": "both", "width": 0, "height": 0, "seed": 0, "samples": PROMPTS}
INDUCE: Mapping[str, Any] = {"estimator": "linear", "order": "causal", "support": "unbounded"}
REMOVE: Mapping[str, Any] = {"estimator": "project", "order": "causal", "support": "gated"}
REFINE: Mapping[str, Any] = {"steps": 60, "pattern": "", "estimator": "refined", "levels": "0.9, 0.5"}


class DemoMap(NamedTuple):
    """One shipped map, fitted on prompts that name a style, on prompts with and without a thing, or on pictures.

    Attributes:
        name: name of the file.
        title, description, tags: for its file.
        style: what it draws in: the target prompts are those of `PLAIN` with this style.
        thing: what it removes; its prompt set is ``<thing>_to_other``.
        picture_set: the pictures that it is fitted on.
        strength: the highest that is recommended.
        branch: that it is applied to.
        subjects: on the cover: unsteered above, steered below.
    """

    name: str
    title: str
    description: str
    tags: str
    style: str = ""
    thing: str = ""
    picture_set: str = ""
    strength: float = 1.0
    branch: Branch = "positive"
    subjects: tuple[str, str] = ("cat", "rocket")

    @property
    def file(self) -> Path:
        return ROOT / "pretrained_maps" / f"{self.name}.safetensors"

    @property
    def usage_hint(self) -> str:
        branch = "" if self.branch == "positive" else f" on branch {self.branch}"
        return f"Apply ACT Steering with model and CLIP at strength 0 to {self.strength:g}{branch}."


def _style(name: str, style: str, description: str) -> DemoMap:
    return DemoMap(f"plain_to_{name}", f"Plain to {name}", description, "style", style=style)


def _removal(thing: str, subject: str) -> DemoMap:
    description = f"Draws something else where a prompt asks for a {thing}; other prompts stay as they are."
    name, subjects = f"remove_{thing}", (subject, "rocket")
    return DemoMap(name, f"No {thing}", description, "removal", thing=thing, strength=1.5, subjects=subjects)


def _pictures(name: str) -> DemoMap:
    description = f"Draws in {name}, which the demo model has no word for; learned from 16 pictures."
    tags = "style, from pictures"
    return DemoMap(f"pictures_{name}", name.capitalize(), description, tags, picture_set=name, branch="both")


DEMO_MAPS = (
    _style("ink", "black ink icon", "Turns what the demo model draws into black ink icons."),
    _style("cartoon", "glossy cartoon", "Turns what the demo model draws into glossy cartoons."),
    _style("3d", "3d render", "Turns what the demo model draws into 3D renders."),
    _style("shapes", "simple shapes", "Turns what the demo model draws into simple shapes."),
    _removal("face", "grinning face"),
    _removal("heart", "red heart"),
    _pictures("sepia"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    names = [demo_map.name for demo_map in DEMO_MAPS]
    parser = argparse.ArgumentParser(
        prog="python -m tools.fit_demo_maps", description="Fit the maps of the demo model."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(names)}")
    chosen = parser.parse_args(arguments).names or names
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
    ):
        for demo_map in DEMO_MAPS:
            if demo_map.name in chosen:
                make(host, demo_map)


def make(host: Host, demo_map: DemoMap) -> None:
    """Fit a map, draw its cover, and write its file."""
    # Imported late, so that the host starts meanwhile.
    from act_core import load_map

    from .shipped_maps import save_shipped

    fitted, pictures = run(host, demo_map)
    save_shipped(
        load_map(fitted),
        demo_map.file,
        title=demo_map.title,
        description=demo_map.description,
        usage_hint=demo_map.usage_hint,
        tags=demo_map.tags,
        strength_range=(0.0, demo_map.strength),
        cover=cover(pictures),
    )


def run(host: Host, demo_map: DemoMap) -> tuple[Path, list[Path]]:
    """Fit the map; returns its file, and pictures without and with it."""
    graph = Graph()
    loaded = graph.add("LoadACTDemoModel")
    fitted = _from_pictures(graph, loaded, demo_map) if demo_map.picture_set else _from_prompts(graph, loaded, demo_map)
    texts = {"title": "", "author": "", "description": "", "license": ""}
    graph.add("SaveACTMap", act_map=fitted, name=demo_map.name, **texts, strength_low=0.0, strength_high=1.0)
    for strength in (0.0, demo_map.strength):
        strengths = {"strength": strength, "strength_clip": strength}
        window = {"start_percent": 0.0, "end_percent": 1.0, "branch": demo_map.branch}
        applied = graph.add("ApplyACTSteering", model=loaded[0], clip=loaded[1], act_map=fitted, **strengths, **window)
        for number, subject in enumerate(demo_map.subjects):
            draw(graph, applied, loaded, demo_map, subject, f"{demo_map.name}_{strength:g}_{number}")
    result = host.run(graph)
    # The name of a map that ships is taken.
    (saved,) = (host.base / "models" / "act_maps").glob(f"{demo_map.name}*.safetensors")
    return saved, host.images(result)


def _from_prompts(graph: Graph, loaded: Node, demo_map: DemoMap) -> Node:
    prompts = load_prompt_set(ROOT / "prompt_sets" / f"{f'{demo_map.thing}_to_other' if demo_map.thing else PLAIN}.txt")
    target = [f"{line}, {demo_map.style}" for line in prompts.source] if demo_map.style else prompts.target
    sides = {"source": "\n".join(prompts.source[:PROMPTS]), "target": "\n".join(target[:PROMPTS])}
    settings = REMOVE if demo_map.thing else INDUCE
    return graph.add("FitACTMap", model=loaded[0], clip=loaded[1], **sides, **FIT, **settings)


def _from_pictures(graph: Graph, loaded: Node, demo_map: DemoMap) -> Node:
    pictures = graph.add("ACTPictureSet", name=demo_map.picture_set, captions=True)
    linked = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2], "images": pictures[0], "captions": pictures[1]}
    settings = {**FIT, "samples": 0, **REFINE, "source_captions": "", "name_pictures": False}
    return graph.add("FitACTMapFromImages", **linked, **settings)


def draw(graph: Graph, applied: Node, loaded: Node, demo_map: DemoMap, subject: str, name: str) -> None:
    """Draw a subject with the steered model, into a file whose name begins with `name`."""
    negative = applied if demo_map.branch == "both" else loaded
    samples = graph.add(
        "KSampler",
        model=applied[0],
        positive=graph.add("CLIPTextEncode", text=subject, clip=applied[1]),
        negative=graph.add("CLIPTextEncode", text="", clip=negative[1]),
        latent_image=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        **{"seed": 0, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )
    images = graph.add("VAEDecode", samples=samples, vae=loaded[2])
    graph.add("SaveImage", images=images, filename_prefix=name)


def cover(pictures: list[Path]) -> bytes:
    """Four pictures as one, two in a row, as the bytes of a JPEG file."""
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for number, path in enumerate(sorted(pictures)):
        row, column = divmod(number, 2)
        image.paste(Image.open(path).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * SIDE, row * SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


if __name__ == "__main__":
    main()
