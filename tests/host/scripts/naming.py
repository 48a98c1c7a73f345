"""Run by the host's own Python: pictures that the demo model drew are named before a map is refined. Prints JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

import inside

# isort: split
import comfy.model_management
import torch
from act_pack.act_core.maps import ActMap
from act_pack.act_core.naming import subjects
from act_pack.nodes import fit_images
from act_pack.nodes.host import image_fitting
from act_pack.nodes.host.demo_model import load_demo_model
from act_pack.nodes.host.denoising_loss import DenoisingLoss, EncodedPicture
from act_pack.nodes.host.drawing import drawn_latents
from act_pack.nodes.host.naming import encoded_words
from act_pack.nodes.host.text_encoders import TextEncoders

from tools.tiny_models import MODELS, StandInCLIP, built

SHOWN = inside.ARGUMENTS
LONG = "a word that has many tokens"
WORDS = (*[word for word in subjects() if word not in SHOWN][::24][:15], LONG, *SHOWN)
# With frames, and with conditioning of its own kinds.
OTHERS = "Qwen-Image", "Wan 2.1", "SDXL"
NAMED: list[EncodedPicture] = []
STEPS = 6


def fitted(model: Any, clip: Any, latents: list[torch.Tensor], **changes: Any) -> ActMap:
    """A map from the node."""
    settings = {"sites": "attention", "steps": STEPS, "width": 0, "height": 0, "seed": 0, **changes}
    inputs = {name: [value] for name, value in settings.items()}
    given = [{"samples": latent} for latent in latents]
    output = fit_images.FitACTMapFromImages.execute(model=[model], clip=[clip], latents=given, **inputs)
    return output.args[0]


def of(act_map: ActMap) -> dict[str, Any]:
    record = act_map.record
    return {
        "captions": record.target_prompts,
        "count": record.target_count,
        "notes": record.notes,
        "components": act_map.components,
        "fitted by": record.fitted_by,
    }


def on_tiny_model(name: str) -> ActMap:
    """A map for a tiny random model, whose text encoder returns more tokens for some words than for others."""
    tiny = MODELS[name]
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(tiny.latent, generator=generator) for _ in range(3)]
    return fitted(built(tiny), StandInCLIP(tiny), latents, sites="auto", steps=1)


def watched_naming() -> None:
    """Keep what the naming returns."""
    found = image_fitting.named

    def named(*arguments: Any) -> list[EncodedPicture]:
        NAMED[:] = found(*arguments)
        return NAMED

    image_fitting.named = named


def watched_captions(seen: list[set[str]]) -> None:
    """Keep the captions of each step."""
    loss = DenoisingLoss._loss

    def kept(self: Any, samples: list[EncodedPicture], *arguments: Any) -> torch.Tensor:
        seen.append({sample.caption for sample in samples})
        return loss(self, samples, *arguments)

    DenoisingLoss._loss = kept


def interrupted(*arguments: Any) -> bool:
    """Whether an interrupt during the naming ends it."""
    named = image_fitting.named

    def interrupt(*given: Any) -> Any:
        comfy.model_management.interrupt_current_processing()
        return named(*given)

    image_fitting.named = interrupt
    try:
        fitted(*arguments)
    except comfy.model_management.InterruptProcessingException:
        return True
    finally:
        image_fitting.named = named
    return False


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # faster for tiny tensors
    fit_images.subjects = lambda: WORDS  # fewer, to be fast
    model, clip, _ = load_demo_model()
    conditionings = TextEncoders(clip).encode([f"{word}, 3d render" for word in SHOWN])
    latents = drawn_latents(model, torch.zeros(1, 16, 8, 8), conditionings, 0)
    watched_naming()
    seen: list[set[str]] = []
    watched_captions(seen)
    found: dict[str, Any] = {"named": of(fitted(model, clip, latents))}
    captions = [[picture.caption, *(other.caption for other in picture.others)] for picture in NAMED]
    found |= {"chosen": captions, "drawn": sorted(set.union(*seen[-STEPS:]))}
    found["model only"] = of(fitted(model, clip, latents, components="model"))
    found["captioned"] = of(fitted(model, clip, latents, captions="\n".join(SHOWN)))
    found["off"] = of(fitted(model, clip, latents, name_pictures=False))
    found["interrupted"] = interrupted(model, clip, latents)
    found["others"] = {name: of(on_tiny_model(name)) for name in OTHERS}
    NAMED.clear()
    found["not differentiable"] = of(on_tiny_model("Cosmos Predict 2"))  # its fused kernels have no gradients
    found["named in vain"] = len(NAMED)
    comfy.model_management.get_free_memory = lambda *_: 1000
    found["words in little memory"] = encoded_words(clip, WORDS).words
    print(json.dumps(found))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
