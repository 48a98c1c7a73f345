"""Workflows that several host tests share."""

from __future__ import annotations

from typing import Any

import torch

from tools.comfyui.server import Graph, Host, Node

SOURCE = "a cat on a mat\na red house\nan old boat\na tall tree\na small dog"
TARGET = "ink, a cat on a mat\nink, a red house\nink, an old boat\nink, a tall tree\nink, a small dog"
STEPS = 6
KINDS = ("demo", "sd15", "sd3", "flux")
# Inputs of nodes with which an example runs quickly, where only its nodes and links matter.
QUICK = {
    "FitACTMap": {"samples": 8},
    "FitACTMapFromImages": {"steps": 1},
    "ACTStrengthSweep": {"strengths": "0, 1"},
    "ACTSteeredText": {"max_length": 4, "compare": False},
    "ACTPromptSet": {"count": 8},
    "CalibrateACTMap": {"prompts": "cat\nhouse\nrocket", "targets": "", "steps": 1},
    "ProbeACTMap": {"steps": 1},
}


class Parts:
    """A model in a graph: its MODEL, CLIP, VAE, and the size of its latents.

    The VAE is that of the demo model, whose latents have the shape of those of SD3 and Flux.
    """

    def __init__(self, graph: Graph, kind: str) -> None:
        self.graph = graph
        self.size = 64
        loaded = graph.add("LoadACTDemoModel")
        self.vae = loaded[2]
        if kind == "demo":
            self.model, self.clip = loaded[0], loaded[1]
        else:
            self.model = graph.add("UNETLoader", unet_name=f"tiny_{kind}.safetensors", weight_dtype="default")
            reads = "stable_diffusion" if kind.startswith("sd15") else "sd3"
            self.clip = graph.add("CLIPLoader", clip_name="clip_l.safetensors", type=reads)

    def fit(self, **changes: Any) -> Node:
        settings = {"sites": "auto", "components": "both", "estimator": "linear", "order": "causal"}
        settings |= {"support": "unbounded", "samples": 5, "width": self.size, "height": self.size, "seed": 0}
        inputs = {"source": SOURCE, "target": TARGET, **settings, **changes}
        return self.graph.add("FitACTMap", model=self.model, clip=self.clip, **inputs)

    def encoded(self, text: str, clip: Node | None = None) -> Node:
        return self.graph.add("CLIPTextEncode", text=text, clip=clip or self.clip)

    def sampled(self, model: Node | None = None, positive: Node | None = None, **changes: Any) -> None:
        """Sample and save the latent."""
        empty = self.graph.add("EmptySD3LatentImage", width=self.size, height=self.size, batch_size=1)
        settings: dict[str, Any] = {
            "seed": 1,
            "steps": STEPS,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "simple",
        }
        settings["denoise"] = 1.0
        samples = self.graph.add(
            "KSampler",
            model=model or self.model,
            positive=positive or self.encoded("a cat on a mat"),
            negative=self.encoded(""),
            latent_image=empty,
            **settings | changes,
        )
        self.graph.add("SaveLatent", samples=samples, filename_prefix="test")


def apply(graph: Graph, model: Node, act_map: Node, clip: Node | None = None, **changes: Any) -> Node:
    settings = {"strength": 1.0, "strength_clip": 1.0, "start_percent": 0.0, "end_percent": 1.0, "branch": "positive"}
    clips = {} if clip is None else {"clip": clip}
    return graph.add("ApplyACTSteering", model=model, act_map=act_map, **clips, **settings | changes)


def sweep(graph: Graph, parts: Parts, act_map: Node) -> None:
    """A small sweep of a map over the text encoders, too."""
    latent = graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    inputs: dict[str, Any] = {
        "positive": parts.encoded("a cat on a mat"),
        "negative": parts.encoded(""),
        "latent": latent,
    }
    inputs |= {"vae": parts.vae, "strengths": "0, 0.5, 1", "clip": parts.clip, "prompt": "a cat on a mat"}
    sampling = {"seed": 0, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    graph.add("ACTStrengthSweep", model=parts.model, act_map=act_map, **inputs, **sampling)


def plain(host: Host, kind: str, **changes: Any) -> torch.Tensor:
    graph = Graph()
    Parts(graph, kind).sampled(**changes)
    return host.latent(host.run(graph))


def steered(
    host: Host, kind: str, name: str, *, sampling: dict[str, Any] | None = None, **changes: Any
) -> torch.Tensor:
    graph = Graph()
    parts = Parts(graph, kind)
    loaded = graph.add("LoadACTMap", name=name)
    applied = apply(graph, parts.model, loaded, parts.clip, **changes)
    parts.sampled(applied[0], parts.encoded("a cat on a mat", applied[1]), **sampling or {})
    return host.latent(host.run(graph))


def free(host: Host, *, unload_models: bool = True) -> None:
    """Make the host drop its cached outputs, and unload models."""
    host.post("/free", {"unload_models": unload_models, "free_memory": True})
    assert host.get("/test/freed")
