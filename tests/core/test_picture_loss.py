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
from act_core.naming import Likelihoods, subjects


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


def test_pictures_without_captions_are_named() -> None:
    """The demo model finds the words that it drew its own pictures from; chance is 3 of 24."""
    demo_model = DiffusersModel.from_pretrained("demo_model")
    shown = ["cat", "rocket", "castle", "sunflower", "umbrella", "key", "bell", "snail"]
    words = [*[word for word in subjects() if word not in shown][::24][:16], *shown]
    model = PictureModel(demo_model)
    captioned = Picture(Image.new("RGB", (64, 64)), "a grey square")
    drawn = [Picture(image) for image in demo_model.generate([f"{word}, 3d render" for word in shown], guidance=3.0)]
    named = model.named([captioned, *drawn], words)
    assert named[0] is captioned
    found = [{picture.caption, *picture.others} for picture in named[1:]]
    assert all(len(own) == 3 for own in found)
    assert sum(word in own for word, own in zip(shown, found, strict=True)) >= 7
    record = refine(model, named, steps=1).record
    assert record.target_count == len(named)
    assert any("3 of 24 words" in note for note in record.notes)


def test_naming_needs_words() -> None:
    model = PictureModel(DiffusersModel(PIPELINES["sd3"](), size=SIZE))
    assert model.named(PICTURES) == PICTURES
    with pytest.raises(FitError, match="no words"):
        model.named([Picture(noise(0))], [])


def test_each_step_draws_one_of_several_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers_model = DiffusersModel(PIPELINES["sd3"](), size=SIZE)
    asked: list[str] = []
    first_call = diffusers_model.first_call
    monkeypatch.setattr(diffusers_model, "first_call", lambda texts: asked.extend(texts) or first_call(texts))
    loss = PictureModel(diffusers_model).loss
    for seed in range(20):
        loss([Picture(noise(0), "one", ("two",)), Picture(noise(1), "alone")], torch.Generator().manual_seed(seed))
    assert set(asked[::2]) == {"one", "two"}
    assert set(asked[1::2]) == {"alone"}


def test_words_that_hardly_change_the_prediction_are_not_likely() -> None:
    found = Likelihoods(torch.zeros(2), torch.tensor([1.0, 0.0]))
    found.add(torch.tensor([[1e-3, 0.0], [1.0, 0.3], [0.0, 1.0]]))
    assert found.likeliest(1) == [1]
