"""Run by the host's own Python: a map refined on pictures for every tiny model. Prints JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

import inside

# isort: split
import comfy.utils
import latent_preview
import torch
from act_pack.act_core import steer
from act_pack.act_core.components import DIFFUSION_MODEL
from act_pack.act_core.errors import FitError
from act_pack.act_core.interception import submodules
from act_pack.act_core.settings import RefineSettings
from act_pack.nodes.host import refinement_progress
from act_pack.nodes.host.denoiser import Denoiser, run_denoiser
from act_pack.nodes.host.denoising_loss import WITH_GRADIENTS, DenoisingLoss, EncodedPicture
from act_pack.nodes.host.image_fitting import EncodedPictures, ImageFit, check_latents
from comfy.cli_args import LatentPreviewMethod
from PIL import Image
from torch import Tensor

from tools.tiny_models import MODELS, StandInCLIP, Tiny, built

COUNT, STEPS = 2, 6
# Where the loss falls more slowly.
MORE_STEPS = {"PixelDiT": 12}
# A picture for each step that was reported with one.
PREVIEWS: list[Image.Image] = []


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same in every bit: buffers that a model never fills may hold NaN."""
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))


def tried(tiny: Tiny, steps: int) -> dict[str, Any]:
    """Refine a map for one model."""
    model, clip = built(tiny), StandInCLIP(tiny)
    module = model.model.diffusion_model
    generator = torch.Generator().manual_seed(1)
    # Pictures that have something in common.
    latents = [0.5 * torch.randn(tiny.latent, generator=generator) + 1 for _ in range(COUNT)]
    conds = [clip.encode_from_tokens_scheduled({"text": f"a cat {number}"})[0] for number in range(COUNT)]
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    samples = [EncodedPicture("", latent, number) for number, latent in enumerate(latents)]

    def loss(patcher: Any = model, pictures: list[EncodedPicture] = samples) -> float:
        found: list[float] = []

        def use(denoiser: Denoiser) -> None:
            with torch.inference_mode(False), torch.no_grad():
                found.append(float(DenoisingLoss(denoiser).loss(pictures, torch.Generator().manual_seed(5))))

        run_denoiser(patcher, torch.zeros_like(latents[0]), 0, conds, use)
        return found[0]

    same = [EncodedPicture("", latents[0], number) for number in range(COUNT)]
    settings = RefineSettings(sites="auto", steps=steps, held_back=0)
    PREVIEWS.clear()
    try:
        check_latents(model, latents)
        act_map = ImageFit(model, EncodedPictures(latents, [""] * COUNT, conds), settings).run()
    except FitError as error:
        kept_weights = all(same_bits(tensor, kept[name]) for name, tensor in module.state_dict().items())
        return {"error": str(error), "same weights": kept_weights, "left behind": left_behind(module)}
    previews = len(PREVIEWS)
    before = loss()
    with steer({DIFFUSION_MODEL: module}, act_map):
        after = loss()
    return {
        "loss if right": loss(predicting(model, latents[0], error=0.0), same),
        "loss if wrong by the noise": loss(predicting(model, latents[0], error=1.0), same),
        "previews": previews,
        "can be previewed": model.model.latent_format.latent_rgb_factors is not None,
        "before": before,
        "after": after,
        "sites": len(act_map),
        "same weights": all(same_bits(tensor, kept[name]) for name, tensor in module.state_dict().items()),
        "same loss": loss() == before,
        "left behind": left_behind(module),
    }


def in_little_memory(tiny: Tiny) -> dict[str, Any]:
    """A map refined where blocks are checkpointed, against one where memory is plenty."""
    clip, rows_in_memory = StandInCLIP(tiny), Denoiser.rows_in_memory
    conds = [clip.encode_from_tokens_scheduled({"text": f"a cat {number}"})[0] for number in range(COUNT)]
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(tiny.latent, generator=generator) for _ in range(COUNT)]
    offsets: list[Tensor] = []
    runs: list[int] = []
    for is_short in (False, True):
        if is_short:
            Denoiser.rows_in_memory = lambda _self, factor: 0 if factor == WITH_GRADIENTS else COUNT
        model = built(tiny)
        module = model.model.diffusion_model
        # An activation that only a block computes.
        part = next(part for name, part in module.named_modules() if name.endswith("attn.proj"))
        calls: list[int] = []
        part.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        act_map = ImageFit(model, EncodedPictures(latents, [""] * COUNT, conds), RefineSettings(steps=2)).run()
        offsets.append(torch.cat([transport.beta for transport in act_map.transports.values()]))
        runs.append(len(calls))
    Denoiser.rows_in_memory = rows_in_memory
    return {
        "difference": float((offsets[0] - offsets[1]).abs().max() / offsets[0].abs().max()),
        "runs": runs,
        "left behind": left_behind(module),
    }


def predicting(model: Any, latent: Tensor, error: float) -> Any:
    """The model, which always takes one picture for the clean one, wrong by a share of the noise level."""
    clean = model.model.process_latent_in(latent)

    def predict(_apply: Any, arguments: dict[str, Any]) -> Tensor:
        sigmas = arguments["timestep"]
        return clean + error * sigmas.view(-1, *[1] * (clean.ndim - 1))

    clone = model.clone()
    clone.set_model_unet_function_wrapper(predict)
    return clone


def report(_done: int, _total: int, preview: Any, **_: Any) -> None:
    """Stands in for what the host sends to the page."""
    if preview is not None:
        assert preview[0] == "JPEG"
        PREVIEWS.append(preview[1])


def left_behind(module: torch.nn.Module) -> int:
    return sum("forward" in part.__dict__ for part in submodules(module).values())


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # faster for tiny tensors
    names = inside.ARGUMENTS or list(MODELS)
    comfy.utils.set_progress_bar_global_hook(report)
    refinement_progress._PREVIEWS = 2  # fewer, to be fast
    latent_preview.args.preview_method = LatentPreviewMethod.Latent2RGB
    get_previewer = latent_preview.get_previewer
    found = {name: tried(MODELS[name], MORE_STEPS.get(name, STEPS)) for name in names}
    # Cannot decode anything.
    latent_preview.get_previewer = lambda *_: latent_preview.LatentPreviewer
    found["failing previews"] = tried(MODELS[names[0]], STEPS)
    latent_preview.get_previewer = get_previewer
    latent_preview.args.preview_method = LatentPreviewMethod.NoPreviews
    found["without previews"] = tried(MODELS[names[0]], STEPS)
    if "SD3" in names:
        found["in little memory"] = in_little_memory(MODELS["SD3"])
    print(json.dumps(found))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
