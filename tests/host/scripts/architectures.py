"""Run by the host's own Python: maps of one architecture on models of others, as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.model_patcher
import comfy.sample
import comfy.supported_models as kinds
import torch
from act_pack.act_core import ActMap, MapError
from act_pack.act_core.architectures.flux import COMFYUI_FLUX
from act_pack.act_core.architectures.shared_names import Translator
from act_pack.act_core.components import DIFFUSION_MODEL
from act_pack.act_core.fingerprints import fingerprint
from act_pack.act_core.interception import submodules
from act_pack.act_core.records import Fingerprint, FitRecord
from act_pack.act_core.sites import Site, matches
from act_pack.act_core.transport import Transport
from act_pack.nodes.host.latents import empty_latent, fixed_latent
from act_pack.nodes.host.models import diffusion_model
from act_pack.nodes.host.steering import Window, steered

WIDTH, TEXT_WIDTH = 128, 64
STREAMS: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": TEXT_WIDTH,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "qkv_bias": True,
}
FLUX = {**STREAMS, "patch_size": 2, "theta": 10000, "txt_ids_dims": []}
# The layer from which Chroma gets all its modulation.
GUIDANCE = {"in_dim": 64, "out_dim": WIDTH, "hidden_dim": 64, "n_layers": 1}
HUNYUAN = {
    **STREAMS,
    "patch_size": [1, 2, 2],
    "theta": 256,
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
WAN = {"dim": WIDTH, "ffn_dim": 256, "num_heads": 1, "num_layers": 1, "text_dim": TEXT_WIDTH}
# Stills and videos whose configurations derive from one another, and others with a size of their own.
SIZED = (
    *("SDXL", "Flux", "ZImage", "Chroma", "CosmosT2IPredict2", "Kandinsky5Image", "Lens", "SD15", "SV3D_u"),
    *("Kandinsky5", "HunyuanVideo", "HunyuanImage21", "HunyuanImage21Refiner", "LTXV", "LTXAV", "WAN21_Vace"),
    *("CosmosI2VPredict2", "MiniMaxH3", "Stable_Zero123"),
)
STILL, VIDEO = (1, 16, 8, 8), (1, 16, 2, 8, 8)
MODELS: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "Flux": (kinds.Flux, {**FLUX, "image_model": "flux", "guidance_embed": True}, STILL),
    "Flux schnell": (kinds.FluxSchnell, {**FLUX, "image_model": "flux", "guidance_embed": False}, STILL),
    "LongCat-Image": (
        getattr(kinds, "LongCatImage", None),  # absent from older hosts
        {**FLUX, "image_model": "flux", "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
        STILL,
    ),
    "Chroma": (
        kinds.Chroma,
        {**FLUX, **GUIDANCE, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "vec_in_dim": None},
        STILL,
    ),
    "HunyuanVideo": (kinds.HunyuanVideo, {**HUNYUAN, "image_model": "hunyuan_video", "guidance_embed": True}, VIDEO),
    "Wan": (kinds.WAN21_T2V, {**WAN, "image_model": "wan2.1", "model_type": "t2v"}, VIDEO),
    "VACE": (
        kinds.WAN21_Vace,
        {**WAN, "image_model": "wan2.1", "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        VIDEO,
    ),
    "Camera": (kinds.WAN21_Camera, {**WAN, "image_model": "wan2.1", "model_type": "camera", "in_dim": 32}, VIDEO),
    "Animate": (
        kinds.WAN22_Animate,
        {**WAN, "num_layers": 5, "image_model": "wan2.1", "model_type": "animate", "in_dim": 36},
        VIDEO,
    ),
    "S2V": (
        kinds.WAN22_S2V,
        {**WAN, "image_model": "wan2.1", "model_type": "s2v", "audio_inject_layers": [0]},
        VIDEO,
    ),
}


def model_of(name: str) -> Any:
    """A tiny random model as a MODEL."""
    kind, settings, _ = MODELS[name]
    config = kind(settings)
    config.set_inference_dtype(torch.float32, None)
    built = config.get_model({}, "")
    generator = torch.Generator().manual_seed(0)
    for parameter in built.diffusion_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(built.eval(), load_device=cpu, offload_device=cpu)


def map_of(model: Any) -> ActMap:
    """A map that shifts the attention outputs and MLPs of a model, recorded as a fit records it."""
    component = diffusion_model(model)
    patterns = component.architecture.patterns("auto")
    sites = [
        Site(DIFFUSION_MODEL, name, None, "tokens", WIDTH)
        for name in submodules(component.module)
        if matches(patterns, name)
    ]
    transport = Transport(torch.ones(WIDTH), torch.ones(WIDTH))
    return ActMap(dict.fromkeys(sites, transport), FitRecord(base={DIFFUSION_MODEL: fingerprint(component)}))


def without_variants(act_map: ActMap) -> ActMap:
    """The map as a version that did not record the variants of its model saved it."""
    base = {name: replace(known, variants=()) for name, known in act_map.record.base.items()}
    return replace(act_map, record=replace(act_map.record, base=base))


def as_from_diffusers(act_map: ActMap) -> ActMap:
    """A Flux map with the names of diffusers, and a norm that returns other values there."""
    (shared,) = COMFYUI_FLUX.shared
    translator = Translator(shared, "diffusers", [])
    translated = {translator.site(site): transport for site, transport in act_map.transports.items()}
    sites = {site: transport for site, transport in translated.items() if site is not None}
    norm = Site(DIFFUSION_MODEL, "transformer_blocks.0.norm1", 0, "tokens", WIDTH)
    base = {DIFFUSION_MODEL: Fingerprint("FluxTransformer2DModel", "0" * 64)}
    return ActMap({norm: next(iter(sites.values())), **sites}, FitRecord(base=base))


def size_of(kind: str) -> list[int]:
    """Height and width of the latent for pictures of a model's usual size, times its downscaling."""
    own = getattr(kinds, kind)
    settings = SimpleNamespace(latent_format=own.latent_format(), diffusion_model=SimpleNamespace())
    model = SimpleNamespace(
        model=SimpleNamespace(model_config=own({})),
        get_model_object=lambda name: getattr(settings, name),
        get_attachment=lambda name: None,
    )
    _, height, width = empty_latent(model, 0, 0).shape[-3:]
    factor = getattr(settings.latent_format, "spacial_downscale_ratio", 8)
    return [width * factor, height * factor]


def draw(model: Any, name: str) -> None:
    """Sample one denoising step."""
    noise = torch.randn(MODELS[name][2], generator=torch.Generator().manual_seed(1))
    texts = torch.randn(2, 1, 7, TEXT_WIDTH, generator=torch.Generator().manual_seed(2))
    pooled = torch.zeros(1, TEXT_WIDTH)
    positive, negative = ([[text, {"pooled_output": pooled}]] for text in texts)
    settings: dict[str, Any] = {"latent_image": torch.zeros_like(noise), "seed": 1, "disable_pbar": True}
    comfy.sample.sample(model, noise, 1, 2.0, "euler", "simple", positive, negative, **settings)


def on(act_map: ActMap, name: str) -> dict[str, Any]:
    """What a map reports on a model before and after a run, or how it is refused."""
    try:
        applied = steered(model_of(name), None, act_map, 1.0, 1.0, Window())
    except MapError as error:
        return {"error": str(error)}
    draw(applied.model, name)
    assert applied.on_model is not None
    return {"report": applied.report.splitlines(), "outcome": applied.on_model.outcome}


def adapted_latent(*, older: bool = False) -> list[int]:
    """Shape of an empty latent of 4 channels on a model with 16; `older` hosts take only the model and the latent."""
    adapt = comfy.sample.fix_empty_latent_channels
    if older:
        comfy.sample.fix_empty_latent_channels = lambda model, latent_image: adapt(model, latent_image)
    try:
        given = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}
        return list(fixed_latent(model_of("Flux"), given).shape)
    finally:
        comfy.sample.fix_empty_latent_channels = adapt


def main() -> None:
    others = [name for name in ("Chroma", "HunyuanVideo", "LongCat-Image") if MODELS[name][0] is not None]
    flux, wan = map_of(model_of("Flux")), map_of(model_of("Wan"))
    results: dict[str, Any] = {
        "own": {"Flux": on(flux, "Flux"), "Wan": on(wan, "Wan")},
        "refused": {name: on(flux, name) for name in others},
        "allowed": {name: on(flux.for_any_architecture(), name) for name in others},
        "same family": {
            "Flux schnell": on(flux, "Flux schnell"),
            "Flux": on(map_of(model_of("Flux schnell")), "Flux"),
        },
        "without variants": {name: on(without_variants(flux), name) for name in others[2:]},
        "from diffusers": {name: on(as_from_diffusers(flux), name) for name in ("Flux", "Flux schnell", *others[2:])},
        "sizes": {kind: size_of(kind) for kind in SIZED if hasattr(kinds, kind)},
        "variants": {name: on(wan, name) for name in ("VACE", "Camera", "Animate", "S2V")},
    }
    results["latents"] = [adapted_latent(), adapted_latent(older=True)]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
