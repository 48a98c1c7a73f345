"""Fit ACT Map From Images on what the host's own nodes for training data return: lists, one item for each picture."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Parts
from PIL import Image

from tools.comfyui.server import Graph, Host, Node

_COUNT = 3


@pytest.fixture(scope="module")
def folder(host: Host) -> str:
    """A folder of pictures with captions beside them, as trainers take it."""
    if not host.get("/object_info/MakeTrainingDataset"):
        pytest.skip("this ComfyUI has no nodes for training data")
    path = host.base / "input" / "dataset"
    path.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(_COUNT):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(f"cat {number}")
    return path.name


def report(host: Host, graph: Graph, **fitted: Node) -> str:
    settings = {"sites": "attention", "steps": 2, "width": 64, "height": 64, "seed": 0}
    graph.add("InspectACTMap", act_map=graph.add("FitACTMapFromImages", **fitted, **settings))
    output = host.shown(graph)
    return output["text"][0]


def test_images_and_captions_of_a_folder(host: Host, folder: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadImageTextDataSetFromFolder", folder=folder)
    inputs = {"model": parts.model, "clip": parts.clip, "vae": parts.vae}
    text = report(host, graph, **inputs, images=loaded, captions=loaded[1])
    assert f"{_COUNT}, such as 'cat " in text
    assert f"on {_COUNT} samples" in text


def test_latents_and_conditioning_of_a_training_dataset(host: Host, folder: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadImageTextDataSetFromFolder", folder=folder)
    dataset = graph.add("MakeTrainingDataset", images=loaded, vae=parts.vae, clip=parts.clip, texts=loaded[1])
    text = report(host, graph, model=parts.model, latents=dataset, conditioning=dataset[1])
    assert f"on {_COUNT} samples" in text
    # Without a CLIP, the text encoders are left alone.
    assert "clip_l" not in text


def test_transparent_pixels_are_put_on_white(host: Host) -> None:
    def text(colour: int, transparency: float) -> str:
        graph = Graph()
        parts = Parts(graph, "demo")
        pictures: list[Node] = []
        for value, opened in ((0xFF0000, 0.0), (colour, transparency)):
            image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=value)
            mask = graph.add("SolidMask", value=opened, width=64, height=64)
            pictures.append(graph.add("JoinImageWithAlpha", image=image, alpha=mask))
        images = graph.add("ImageBatch", image1=pictures[0], image2=pictures[1])
        return report(host, graph, model=parts.model, vae=parts.vae, images=images, conditioning=parts.encoded(""))

    black, white = 0x000000, 0xFFFFFF
    assert text(black, 1.0) == text(white, 0.0) != text(black, 0.0)
