"""Refining maps of diffusers pipelines on pictures."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pipelines import PIPELINES, SIZE
from torch import Tensor

from act_core.errors import FitError
from act_core.fitting import refine
from act_core.image_files import Picture
from act_core.models.diffusers import DiffusersModel
from act_core.models.picture_loss import PictureModel


def noise(seed: int) -> Image.Image:
    values = torch.randint(256, (24, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


PICTURES = [Picture(noise(n), f"thing {n}") for n in range(6)]


def loss_of(model: PictureModel) -> float:
    with torch.no_grad():
        losses = [float(model.loss(PICTURES, torch.Generator().manual_seed(1000 + n))) for n in range(4)]
    return sum(losses) / len(losses)


def weights(model: PictureModel) -> list[Tensor]:
    return [tensor.clone() for module in model.modules.values() for tensor in module.state_dict().values()]


@pytest.mark.parametrize("name", ["stable diffusion", "sdxl", "sd3", "one encoder"])
def test_loss_falls_and_weights_stay(name: str) -> None:
    diffusers_model = DiffusersModel(PIPELINES[name](), size=SIZE)
    model = PictureModel(diffusers_model)
    before, kept = loss_of(model), weights(model)
    act_map = refine(model, PICTURES, sites="attention,mlp", steps=40, rate=0.05, batch_size=6, held_back=0)
    assert all(torch.equal(one, other) for one, other in zip(kept, weights(model), strict=True))
    with diffusers_model.steer(act_map):
        assert loss_of(model) < 0.95 * before
    assert loss_of(model) == before
    assert act_map.components == tuple(part.name for part in diffusers_model.components)
    assert all(bool((transport.omega != 1).any()) for transport in act_map.transports.values())
    assert act_map.record.target_prompts == tuple(picture.caption for picture in PICTURES)


def test_packed_latents_are_refused() -> None:
    model = PictureModel(DiffusersModel(PIPELINES["flux"](), size=SIZE))
    with pytest.raises(FitError, match="packs its latents"):
        refine(model, PICTURES)


def test_loss_is_lower_with_the_right_captions() -> None:
    """The loss is the one that the demo model was trained on: it knows its own pictures by their captions."""
    demo_model = DiffusersModel.from_pretrained("demo_model")
    captions = ["cat", "rocket", "castle", "sunflower", "umbrella", "key", "bell", "snail"]
    images = demo_model.generate([f"{caption}, flat sticker" for caption in captions], guidance=3.0)
    model = PictureModel(demo_model)

    def mean_loss(shift: int) -> float:
        texts = captions[shift:] + captions[:shift]
        pictures = [Picture(image, f"{text}, flat sticker") for image, text in zip(images, texts, strict=True)]
        with torch.no_grad():
            return sum(float(model.loss(pictures, torch.Generator().manual_seed(n))) for n in range(8))

    assert mean_loss(0) < 0.95 * mean_loss(3)
