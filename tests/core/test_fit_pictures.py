"""Fitting a map from pictures at several noise levels, on tiny pipelines and on the demo model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from helpers import largest_difference
from PIL import Image, ImageOps
from pipelines import PIPELINES, SIZE
from torch import Tensor, nn

from act_core import ActMap, MapError
from act_core.errors import FitError, MapMismatchError
from act_core.fitting import fit, fit_pictures
from act_core.image_files import Picture
from act_core.levels import LEVELS
from act_core.models.diffusers import DiffusersModel
from act_core.models.picture_loss import PictureModel
from act_core.models.schedules import DiffusionSchedule, FlowSchedule, schedule_of
from act_core.progress import fit_pictures_with_bar
from act_core.summary import describe

SUBJECTS = ("cat", "rocket", "castle", "sunflower", "umbrella", "key", "bell", "snail", "boat", "tree", "fish", "moon")


def noise(seed: int) -> Image.Image:
    values = torch.randint(256, (24, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


PICTURES = [Picture(noise(n), f"thing {n}") for n in range(4)]
OTHERS = [Picture(noise(n), f"thing {n}") for n in range(10, 13)]


def tiny(name: str = "sd3") -> tuple[DiffusersModel, PictureModel]:
    model = DiffusersModel(PIPELINES[name](), size=SIZE)
    return model, PictureModel(model)


def pixels(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


@pytest.mark.parametrize("name", ["stable diffusion", "sdxl", "sd3", "one encoder"])
def test_map_has_a_bin_for_each_level_and_the_model_is_left_alone(name: str) -> None:
    model, picture_model = tiny(name)
    kept = [tensor.clone() for module in picture_model.modules.values() for tensor in module.state_dict().values()]
    before = pixels(model.generate(["a cat"], steps=3))
    act_map = fit_pictures(picture_model, PICTURES, OTHERS, levels=(0.2, 0.9), sites="attention")
    assert act_map.levels == (0.9, 0.2)
    assert act_map.components == ("diffusion_model",)
    after = [tensor for module in picture_model.modules.values() for tensor in module.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(kept, after, strict=True))
    assert torch.equal(pixels(model.generate(["a cat"], steps=3)), before)
    assert (act_map.record.source_count, act_map.record.target_count) == (3, 4)
    assert act_map.record.target_prompts == tuple(picture.caption for picture in PICTURES)


def test_each_bin_is_the_fit_at_its_level() -> None:
    _, model = tiny()
    act_map = fit_pictures(model, PICTURES, OTHERS, levels=(0.9, 0.2), sites="attention")
    for level in act_map.levels:
        alone = fit(model.at_level(level), OTHERS, PICTURES, sites="attention")
        assert set(alone.difference(act_map.at(level)).values()) == {0.0}
    assert max(act_map.at(0.9).difference(act_map.at(0.2)).values()) > 0.01


@pytest.mark.usefixtures("four_at_a_time")
def test_pictures_keep_their_noise_in_groups() -> None:
    model = tiny()[1].at_level(0.9)
    settings: dict[str, Any] = {"sites": "attention", "order": "simultaneous"}
    whole, grouped = (fit(model, OTHERS, PICTURES, memory_budget=budget, **settings) for budget in (None, 1 << 30))
    assert largest_difference(whole, grouped) < 1e-3  # other batches, summed in another order


def test_noise_of_a_level_hides_the_picture() -> None:
    """At level 1 the model sees noise alone, so that the map does nothing."""
    _, model = tiny()
    pictures, others = ([Picture(one.image) for one in side[:3]] for side in (PICTURES, OTHERS))
    act_map = fit_pictures(model, pictures, others, levels=(1.0, 0.5), sites="attention")
    assert "3 source without captions; 3 target without captions" in describe(act_map)
    for transport in act_map.at(1.0).transports.values():
        assert torch.allclose(transport.omega, torch.ones(()), atol=1e-4)
        assert torch.allclose(transport.beta, torch.zeros(()), atol=1e-4)
    assert any((t.beta.abs() > 1e-3).any() for t in act_map.at(0.5).transports.values())


def test_source_is_drawn_from_the_captions() -> None:
    model, picture_model = tiny()
    images = model.generate([picture.caption for picture in PICTURES], seed=5, steps=12)
    sources = [Picture(image, picture.caption) for image, picture in zip(images, PICTURES, strict=True)]
    given = fit_pictures(picture_model, PICTURES, sources, levels=(0.8,), sites="attention", seed=5)
    drawn = fit_pictures(picture_model, PICTURES, levels=(0.8,), sites="attention", seed=5)
    assert set(given.difference(drawn).values()) == {0.0}
    assert "source pictures drawn by the model from the same captions" in drawn.record.notes
    assert "source pictures drawn by the model from the same captions" in describe(drawn)
    assert not any("drawn" in note for note in given.record.notes)


def test_sampling_uses_the_nearest_bin_at_each_step() -> None:
    model, picture_model = tiny()
    act_map = fit_pictures(picture_model, PICTURES, OTHERS, levels=(0.95, 0.5, 0.1), sites="attention")
    levels: list[float] = []
    with model.steer(act_map) as steering:
        model.generate(["a cat"], steps=6, guidance=3.0, step=lambda: levels.append(steering.level))
    times = model.pipeline.scheduler.timesteps  # of the latest run of any length
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 1.0
    assert levels[-1] < 0.5
    assert len(times) != len(levels) or torch.allclose(torch.tensor(levels), times / 1000, atol=1e-3)


@pytest.mark.parametrize("name", ["stable diffusion", "sd3"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_with_equal_bins_is_that_of_a_plain_map(name: str, guidance: float) -> None:
    model, picture_model = tiny(name)
    act_map = fit_pictures(picture_model, PICTURES, OTHERS, levels=(0.5,), sites="attention")
    drawn: list[Tensor] = []
    for one in (act_map, act_map.at(0.5)):
        with model.steer(one):
            drawn.append(pixels(model.generate(["a cat", "a dog"], steps=3, guidance=guidance)))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], pixels(model.generate(["a cat", "a dog"], steps=3, guidance=guidance)))


def test_pipeline_that_counts_time_in_its_own_way_is_refused() -> None:
    model = DiffusersModel(PIPELINES["flux"](), size=SIZE)
    plain = fit(model, ["a cat", "a dog"], ["a red cat", "a red dog"], sites="attention")
    site, transport = next(
        (site, transport) for site, transport in plain.transports.items() if site.component == "diffusion_model"
    )
    binned = type(transport)(transport.omega[None], transport.beta[None])
    act_map = ActMap({site: binned}, plain.record, levels=(0.5,))
    with pytest.raises(MapMismatchError, match="several noise levels, but how a FluxPipeline"), model.steer(act_map):
        model.generate(["a cat"], steps=2)


@pytest.mark.parametrize(
    ("target", "source", "changes", "reason"),
    [
        (PICTURES[:1], OTHERS, {}, "There is 1 picture"),
        (PICTURES, OTHERS[:1], {}, "The source pictures cannot be used. There is 1 picture"),
        (PICTURES[:1] * 2, OTHERS, {}, "All pictures are the same"),
        (PICTURES, PICTURES, {}, "source pictures and the target pictures are the same"),
        (PICTURES, OTHERS, {"levels": (0.5, 1.5)}, "The noise level is 1.5"),
        (PICTURES, OTHERS, {"levels": (0.5, 0.5)}, "each must be lower"),
        (PICTURES, OTHERS, {"levels": ()}, "no noise levels"),
        (PICTURES, OTHERS, {"colour": 1}, "has no setting 'colour'"),
    ],
)
def test_bad_input_is_refused(target: Any, source: Any, changes: dict[str, Any], reason: str) -> None:
    _, model = tiny()
    with pytest.raises(MapError, match=reason):
        fit_pictures(model, target, source, **changes)


@pytest.mark.usefixtures("four_at_a_time")
@pytest.mark.parametrize("memory_budget", [None, 1 << 30], ids=["at once", "streamed"])
def test_progress_counts_all_levels_and_cancels(memory_budget: int | None) -> None:
    _, model = tiny()
    seen: list[tuple[int, int]] = []
    act_map = fit_pictures(
        model,
        PICTURES,
        OTHERS,
        levels=(0.9, 0.2),
        sites="attention",
        memory_budget=memory_budget,
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert act_map.record.walk == ("exact" if memory_budget is None else "streamed")
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)]

    def cancel(done: int, total: int, _: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_pictures(model, PICTURES, OTHERS, levels=(0.9,), sites="attention", progress=cancel)


def test_schedules_count_alike_from_0_to_1() -> None:
    clean, flat = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    flow = FlowSchedule(3.0, 1000)
    mixed, _, time = flow.at(torch.tensor([1.0, 0.25]), clean, flat)
    assert mixed.flatten().tolist() == [1.0, 0.25]
    assert time.tolist() == [1000.0, 250.0]
    diffusion = DiffusionSchedule(torch.linspace(1, 0, 1000), predicts_velocity=False)
    mixed, _, time = diffusion.at(torch.tensor([1.0, 0.0]), clean, flat)
    assert mixed.flatten().tolist() == [1.0, 0.0]
    assert time.tolist() == [999, 0]
    for schedule in (flow, diffusion):
        levels = schedule.sampled(torch.rand(100, generator=torch.Generator().manual_seed(0)))
        assert 0 <= float(levels.min()) <= float(levels.max()) <= 1


def test_velocity_is_that_of_the_library() -> None:
    scheduler: Any = DDPMScheduler(prediction_type="v_prediction")
    schedule = DiffusionSchedule(scheduler.alphas_cumprod, predicts_velocity=True)
    clean, added = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noisy, wanted, time = schedule.at(torch.tensor([0.9, 0.5, 0.1]), clean, added)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, added, time))
    torch.testing.assert_close(wanted, scheduler.get_velocity(clean, added, time))


def test_shifted_flow_visits_high_levels_more_often() -> None:
    shares = torch.tensor([0.0, 0.5, 1.0])
    assert FlowSchedule(3.0, 1000).sampled(shares).tolist() == [0.0, 0.75, 1.0]
    assert FlowSchedule(1.0, 1000).sampled(shares).tolist() == shares.tolist()


def test_unknown_scheduler_has_no_schedule() -> None:
    pipeline = PIPELINES["sd3"]()
    pipeline.scheduler = nn.Module()
    pipeline.scheduler.config = None  # pyright: ignore[reportArgumentType]
    assert schedule_of(pipeline) is None
    with pytest.raises(FitError, match="The loss of a pipeline with a Module is not known"):
        PictureModel(DiffusersModel(pipeline, size=SIZE))


def test_demo_model_learns_grey_from_pictures() -> None:
    """Pictures that the demo model draws, without their colours; those in colour on both sides are the control."""
    demo = DiffusersModel.from_pretrained("demo_model", components="model")
    model = PictureModel(demo)
    drawn, others = (
        [Picture(image) for image in demo.generate(SUBJECTS, steps=8, guidance=3.0, seed=seed)] for seed in (0, 50)
    )
    grey = [Picture(ImageOps.grayscale(picture.image).convert("RGB")) for picture in drawn]
    found: dict[str, float] = {}
    for name, (source, target) in {"grey": (drawn, grey), "control": (drawn, others)}.items():
        act_map = fit_pictures(model, target, source, levels=LEVELS, sites="attention,mlp")
        with demo.steer(act_map):
            found[name] = saturation(demo.generate(["flower", "house", "dog"], steps=8, guidance=3.0, seed=20))
    plain = saturation(demo.generate(["flower", "house", "dog"], steps=8, guidance=3.0, seed=20))
    # 0.26 and 1.0 when this was written.
    assert found["grey"] < 0.5 * plain
    assert found["control"] > 0.7 * plain


def saturation(images: list[Image.Image]) -> float:
    """Mean difference between the largest and the smallest colour of a pixel."""
    values = pixels(images).float()
    return float((values.amax(-1) - values.amin(-1)).mean())


def test_bar_follows_a_total_that_grows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After memory ran out, a fit begins again and passes its sites in several groups."""
    calls = [(1, 4), (2, 4), *((number, 8) for number in range(1, 9))]

    def fitting(*_: object, progress: Any, **__: object) -> None:
        for done, total in calls:
            progress(done, total, "site")

    monkeypatch.setattr("act_core.progress.fit_pictures", fitting)
    fit_pictures_with_bar(tiny()[1], PICTURES)
    assert "8/8" in capsys.readouterr().out
