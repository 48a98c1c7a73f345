"""Fits ``pretrained_maps/plain_to_ink.safetensors`` on the demo model, with the nodes, in ComfyUI.

    python -m tools.fit_picture_map

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image

from tools.comfyui.server import Graph, Host, Node, started

ROOT = Path(__file__).parents[1]
FILE = ROOT / "pretrained_maps" / "plain_to_ink.safetensors"
PROMPTS = 128
STRENGTHS = (0.0, 1.0)
# On the cover: unsteered above, steered below.
SUBJECTS = ("cat", "rocket")
SIDE = 128


def main() -> None:
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
    ):
        fitted, pictures = run(host)
        # Imported late, so that the host starts meanwhile.
        from act_core import load_map, save_map

        save_map(
            load_map(fitted),
            FILE,
            title="Plain to ink",
            author="ACT Steering",
            description="Turns what the demo model draws into black ink icons.",
            license="CC0-1.0",
            strength_range=STRENGTHS,
            cover=cover(pictures),
        )
    print(f"wrote {FILE.relative_to(ROOT)}, {FILE.stat().st_size / 1e6:.2f} MB")


def run(host: Host) -> tuple[Path, list[Path]]:
    """Fit the map with the default settings; returns its file, and pictures at each strength."""
    graph = Graph()
    loaded = graph.add("LoadACTDemoModel")
    prompts = graph.add("ACTPromptSet", name="plain_to_ink.txt", count=PROMPTS)
    fitted = graph.add(
        "FitACTMap",
        model=loaded[0],
        clip=loaded[1],
        source=prompts[0],
        target=prompts[1],
        **{"sites": "auto", "components": "both", "estimator": "linear", "order": "causal", "support": "unbounded"},
        **{"samples": PROMPTS, "width": 0, "height": 0, "seed": 0},
    )
    texts = {"title": "", "author": "", "description": "", "license": ""}
    graph.add("SaveACTMap", act_map=fitted, name="fitted", **texts, strength_low=0.0, strength_high=1.0)
    for strength in STRENGTHS:
        strengths = {"strength": strength, "strength_clip": strength}
        window = {"start_percent": 0.0, "end_percent": 1.0, "branch": "positive"}
        applied = graph.add("ApplyACTSteering", model=loaded[0], clip=loaded[1], act_map=fitted, **strengths, **window)
        for subject in SUBJECTS:
            draw(graph, applied, loaded, subject, f"{strength:g}_{SUBJECTS.index(subject)}")
    result = host.run(graph)
    return host.base / "models" / "act_maps" / "fitted.safetensors", host.images(result)


def draw(graph: Graph, applied: Node, loaded: Node, subject: str, name: str) -> None:
    """Draw a subject with the steered model, into a file whose name begins with `name`."""
    samples = graph.add(
        "KSampler",
        model=applied[0],
        positive=graph.add("CLIPTextEncode", text=subject, clip=applied[1]),
        negative=graph.add("CLIPTextEncode", text="", clip=loaded[1]),
        latent_image=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        **{"seed": 0, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )
    images = graph.add("VAEDecode", samples=samples, vae=loaded[2])
    graph.add("SaveImage", images=images, filename_prefix=name)


def cover(pictures: list[Path]) -> bytes:
    """The pictures as one, as the bytes of a JPEG file."""
    image = Image.new("RGB", (SIDE * len(SUBJECTS), SIDE * len(STRENGTHS)))
    for number, path in enumerate(sorted(pictures)):
        row, column = divmod(number, len(SUBJECTS))
        image.paste(Image.open(path).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * SIDE, row * SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


if __name__ == "__main__":
    main()
