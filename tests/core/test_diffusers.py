"""Text-to-image pipelines: tiny random ones of every kind."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import keys, prompts, swapped
from pipelines import PIPELINES, TOKENS, one_encoder, stable_diffusion
from torch import Tensor

from act_core import ActMap, MapError, fit, load_map, save_map
from act_core.discovery import discover
from act_core.interception import intercepted, output_tensors
from act_core.models.diffusers import DIFFUSION_MODEL, DiffusersModel

SIZE = (16, 16)
SOURCE, TARGET = prompts("source", 5), prompts("target", 5)


@pytest.fixture(scope="module")
def pipeline() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = PIPELINES[kind]()
        return made[kind]

    return get


@pytest.fixture(params=PIPELINES)
def model(request: pytest.FixtureRequest, pipeline: Callable[[str], Any]) -> DiffusersModel:
    return DiffusersModel(pipeline(request.param), request.param, size=SIZE)


@pytest.fixture
def unet(pipeline: Callable[[str], Any]) -> DiffusersModel:
    return DiffusersModel(pipeline("stable diffusion"), size=SIZE)


def fitted(model: DiffusersModel, sites: str = "attention", **settings: Any) -> ActMap:
    return fit(model, SOURCE, TARGET, sites=sites, **settings)


def pixels(model: DiffusersModel, texts: list[str] | None = None, **settings: Any) -> Any:
    images = model.generate(texts or SOURCE[:2], steps=3, **settings)
    return np.stack([np.asarray(image) for image in images]).astype(int)


def all_swapped(model: DiffusersModel) -> list[str]:
    return [name for module in model.modules.values() for name in swapped(module)]


# --- sites

# Kind of pipeline -> preset -> how many sites of the diffusion model, as pipelines.py makes it.
COUNTS = {
    # Four transformers (one on the way down, one in the middle, two on the way up) with two attentions each.
    "stable diffusion": {"attention": 8, "mlp": 4},
    "sdxl": {"attention": 8, "mlp": 4},
    # Three blocks of two streams; the text stream of the last one ends with its attention.
    "sd3": {"norms": 11, "attention": 5, "mlp": 5, "blocks": 5},
    "one encoder": {"norms": 11, "attention": 5, "mlp": 5, "blocks": 5},
    "flux": {"norms": 10, "attention": 6, "mlp": 4, "blocks": 8},
}


def sites_of(model: DiffusersModel, sites: str) -> list[str]:
    batch = model.batches(["rain", "sun"], 2)[0]
    with torch.no_grad():
        return [site.key for site in discover(model.components, sites, batch.run, batch.rows)]


@pytest.mark.parametrize(("kind", "preset"), [(kind, preset) for kind, presets in COUNTS.items() for preset in presets])
def test_presets_find_what_they_promise(pipeline: Callable[[str], Any], kind: str, preset: str) -> None:
    model = DiffusersModel(pipeline(kind), size=SIZE, components="model")
    names = sites_of(model, preset)
    assert len(names) == COUNTS[kind][preset]
    assert not [name for name in names if "norm_q" in name or "norm_k" in name]


def test_all_norms_of_a_unet_are_found_in_the_order_in_which_they_run(unet: DiffusersModel) -> None:
    from diffusers.models.normalization import RMSNorm

    names = [key for key in sites_of(unet, "norms") if key.startswith(DIFFUSION_MODEL)]
    kinds = (torch.nn.LayerNorm, torch.nn.GroupNorm, RMSNorm)
    every = {f"{DIFFUSION_MODEL}/{n}" for n, m in unet.modules[DIFFUSION_MODEL].named_modules() if isinstance(m, kinds)}
    assert set(names) == every
    assert names[0].endswith("down_blocks.0.resnets.0.norm1")
    assert names[-1].endswith("conv_norm_out")
    # In a block the residual part runs before the attention, though the attention is registered first.
    down = [name for name in names if "down_blocks.1." in name]
    assert "resnets" in down[0]


def test_text_encoders_come_first(model: DiffusersModel) -> None:
    components = list(dict.fromkeys(key.partition("/")[0] for key in sites_of(model, "attention")))
    assert components == list(model.modules)
    assert components[-1] == DIFFUSION_MODEL


@pytest.mark.parametrize(("components", "expected"), [("model", [DIFFUSION_MODEL]), ("text", ["clip_l", "clip_g"])])
def test_components_can_be_chosen(pipeline: Callable[[str], Any], components: Any, expected: list[str]) -> None:
    model = DiffusersModel(pipeline("sdxl"), components=components, size=SIZE)
    assert fitted(model).components == tuple(expected)


def test_the_output_of_a_text_encoder_is_a_preset_of_its_own(pipeline: Callable[[str], Any]) -> None:
    model = DiffusersModel(pipeline("one encoder"), size=SIZE)
    assert sites_of(model, "output") == ["clip_l/text_model.final_layer_norm", "clip_l/text_projection"]


# --- fitting


def test_a_fit_leaves_the_pipeline_as_it_was(model: DiffusersModel) -> None:
    before = pixels(model)
    act_map = fitted(model)
    assert keys(act_map) == sites_of(model, "attention")
    assert all_swapped(model) == []
    np.testing.assert_array_equal(pixels(model), before)


@pytest.mark.parametrize("kind", PIPELINES)
def test_batch_size_does_not_change_the_map(kind: str) -> None:
    # A batch of another size sums in another order, which differs by CPU. In float64 that stays far below the last bit
    # of the float32 to which values are pooled, however much the sites amplify it.
    model = DiffusersModel(PIPELINES[kind]().to(torch.float64), kind, size=SIZE)
    transports = zip(fitted(model).transports.values(), fitted(model, batch_size=2).transports.values(), strict=True)
    for one, other in transports:
        torch.testing.assert_close(one.omega, other.omega, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.beta, other.beta, rtol=1e-4, atol=1e-5)


def test_a_fit_runs_each_prompt_once_at_the_noisiest_step_and_without_guidance(model: DiffusersModel) -> None:
    rows: list[int] = []
    times: list[Tensor] = []
    denoiser = model.modules[DIFFUSION_MODEL]
    embedding = denoiser.time_embedding if hasattr(denoiser, "time_embedding") else denoiser.time_text_embed
    inner: Any = getattr(embedding, "timestep_embedder", embedding)

    def note_rows(output: Any) -> Any:
        rows.append(next(iter(output_tensors(output).values())).shape[0])
        return output

    def note_time(output: Any) -> Any:
        times.append(output)
        return output

    (batch,) = model.batches(SOURCE, len(SOURCE))
    with torch.no_grad(), intercepted({inner: note_time, denoiser: note_rows}):
        batch.run()
        assert rows == [len(SOURCE)]
        times.clear()
        pipeline = model.pipeline
        pipeline(prompt=["rain"] * 5, num_inference_steps=20, output_type="latent", height=16, width=16)
    noisiest = times[0][-5:]
    times.clear()
    with torch.no_grad(), intercepted({inner: note_time}):
        batch.run()
    torch.testing.assert_close(times[0], noisiest)


def test_a_batch_runs_again_from_the_same_noise(model: DiffusersModel) -> None:
    batch: Any = model.batches(SOURCE, 5)[0]
    with torch.no_grad():
        first, second = (batch.run().images for _ in range(2))
    assert torch.equal(first, second)


def test_both_sides_start_from_the_same_noise_and_each_prompt_from_its_own(unet: DiffusersModel) -> None:
    seen: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        seen.append(output)
        return output

    conv_in = unet.modules[DIFFUSION_MODEL].get_submodule("conv_in")
    with torch.no_grad(), intercepted({conv_in: note}):
        for texts in (SOURCE, TARGET):
            for batch in unet.batches(texts, 2):
                batch.run()
    source, target = torch.cat(seen[:3]), torch.cat(seen[3:])
    torch.testing.assert_close(source, target)
    assert len({tuple(row.flatten()[:8].tolist()) for row in source}) == len(SOURCE)


# --- steering


def test_strength_zero_is_the_unsteered_picture_and_so_is_the_next_run(model: DiffusersModel) -> None:
    before = pixels(model, guidance=3.0)
    act_map = fitted(model)
    with model.steer(act_map, 0.0):
        np.testing.assert_array_equal(pixels(model, guidance=3.0), before)
    with model.steer(act_map, 4.0) as steering:
        assert np.abs(pixels(model, guidance=3.0) - before).max() > 0
    assert len(steering.coverage.fired) == len(act_map)
    np.testing.assert_array_equal(pixels(model, guidance=3.0), before)
    assert all_swapped(model) == []


@pytest.mark.parametrize("kind", [kind for kind in PIPELINES if kind != "flux"])
@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_only_the_rows_of_the_branch_are_moved(pipeline: Callable[[str], Any], kind: str, branch: Any) -> None:
    model = DiffusersModel(pipeline(kind), size=SIZE)
    every = keys(fitted(model))
    # Not the first of the diffusion model, which does not know the prompt yet: there the map is the identity.
    text, image = next(key for key in every if key.startswith("clip_l")), every[-1]
    for key in (text, image):
        act_map = fitted(model).restrict(key)
        outputs: list[list[Tensor]] = []
        component, name = key.split("/")
        module = model.modules[component].get_submodule(name)
        for strength in (0.0, 1.0):
            seen: list[Tensor] = []

            def note(output: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(output.clone())
                return output

            # Inside of what steers, as the model itself sees it.
            with model.steer(act_map, strength, branch), intercepted({module: note}):
                pixels(model, guidance=3.0, negative="dull")
            outputs.append(seen)
        calls = zip(*outputs, strict=True)
        halves = [pair for call in calls for pair in zip(*(output.chunk(2) for output in call), strict=True)]
        moved = [not torch.equal(*pair) for pair in halves]
        if key is text:  # one call for the positive branch, then one for the negative
            assert moved == ([True, True, False, False] if branch == "positive" else [False, False, True, True])
        else:  # negative rows come first; the first step of several
            assert moved[:2] == ([False, True] if branch == "positive" else [True, False])


def test_without_guidance_all_rows_are_the_positive_branch(unet: DiffusersModel) -> None:
    act_map = fitted(unet)
    before = pixels(unet, guidance=1.0)
    with unet.steer(act_map, 4.0, "negative") as steering:
        np.testing.assert_array_equal(pixels(unet, guidance=1.0), before)
    assert steering.coverage.fired == ()
    with unet.steer(act_map, 4.0, "both"):
        both = pixels(unet, guidance=1.0)
    with unet.steer(act_map, 4.0):
        np.testing.assert_array_equal(pixels(unet, guidance=1.0), both)


@pytest.mark.parametrize("kind", ["stable diffusion", "flux"])
def test_a_branch_that_is_not_there_is_an_error_that_says_so(pipeline: Callable[[str], Any], kind: str) -> None:
    model = DiffusersModel(pipeline(kind))
    with model.steer(fitted(model), 1.0, "negative") as steering:
        pixels(model, guidance=1.0)
        with pytest.raises(MapError, match="is not there without guidance"):
            steering.check()


@pytest.mark.parametrize("kind", ["stable diffusion", "flux"])
def test_a_compiled_pipeline_is_the_same_pipeline(pipeline: Callable[[str], Any], kind: str) -> None:
    plain = DiffusersModel(pipeline(kind))
    act_map = fitted(plain)
    compiled = copy.copy(pipeline(kind))
    for name, part in compiled.components.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            setattr(compiled, name, torch.compile(part, backend="eager"))
    model = DiffusersModel(compiled)
    assert list(model.modules) == list(plain.modules)
    assert model.steer(act_map).warnings == ()
    assert keys(fitted(model)) == keys(act_map)
    with plain.steer(act_map, 2.0):
        wanted = pixels(plain)
    with model.steer(act_map, 2.0) as steering:
        assert np.array_equal(pixels(model), wanted)
        assert not steering.coverage.silent


def test_each_component_has_a_strength(unet: DiffusersModel) -> None:
    act_map = fitted(unet)
    with unet.steer(act_map, {"clip_l": 0.0, DIFFUSION_MODEL: 3.0}):
        one = pixels(unet)
    with unet.steer(act_map.restrict(f"{DIFFUSION_MODEL}/*"), 3.0):
        np.testing.assert_array_equal(pixels(unet), one)


def test_a_prompt_has_the_same_picture_alone_and_in_a_batch(unet: DiffusersModel) -> None:
    together = pixels(unet, SOURCE[:2], seed=7)
    alone = pixels(unet, SOURCE[1:2], seed=8)
    assert np.abs(together[1] - alone[0]).max() <= 1  # rounding


def test_a_map_goes_through_a_file(model: DiffusersModel, tmp_path: Path) -> None:
    act_map = fitted(model)
    loaded = load_map(save_map(act_map, tmp_path / "map.safetensors"))
    with model.steer(act_map, 2.0):
        steered = pixels(model)
    with model.steer(loaded, 2.0) as steering:
        np.testing.assert_array_equal(pixels(model), steered)
    assert steering.warnings == ()


# --- folders and bad input


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    one_encoder().save_pretrained(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_is_loaded_as_what_was_saved(folder: Path) -> None:
    loaded = DiffusersModel.from_pretrained(folder, size=SIZE)
    np.testing.assert_array_equal(pixels(loaded), pixels(DiffusersModel(one_encoder(), size=SIZE)))


def test_a_folder_of_another_kind_of_pipeline_is_loaded(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "sd")
    loaded = DiffusersModel.from_pretrained(tmp_path / "sd", size=SIZE)
    np.testing.assert_array_equal(pixels(loaded), pixels(DiffusersModel(stable_diffusion(), size=SIZE)))


def refused(match: str, make: Callable[[], object]) -> None:
    with pytest.raises(MapError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    refused("no pipeline folder", lambda: DiffusersModel.from_pretrained(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    refused("is damaged", lambda: DiffusersModel.from_pretrained(tmp_path))


def test_a_missing_component_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "vae")
    refused("no folder 'vae'", lambda: DiffusersModel.from_pretrained(copied))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_kind_of_pipeline_is_refused(copied: Path) -> None:
    edit(copied / "model_index.json", _class_name="AudioLDMPipeline")
    refused("AudioLDMPipeline, which cannot be steered", lambda: DiffusersModel.from_pretrained(copied))


def test_an_unknown_scheduler_is_one_sentence(copied: Path) -> None:
    edit(copied / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"])
    refused("cannot be loaded", lambda: DiffusersModel.from_pretrained(copied))


def test_weights_of_the_wrong_shape_are_one_sentence(copied: Path) -> None:
    edit(copied / "transformer" / "config.json", num_attention_heads=4)
    refused("cannot be loaded", lambda: DiffusersModel.from_pretrained(copied))


@pytest.mark.parametrize(
    ("size", "match"), [((0, 16), "multiples"), ((18, 16), "multiples of 4"), ((16, 4096), "too large")]
)
def test_a_size_that_the_model_cannot_do_is_refused(
    pipeline: Callable[[str], Any], size: tuple[int, int], match: str
) -> None:
    refused(match, lambda: DiffusersModel(pipeline("one encoder"), size=size))


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"prompts": []}, "no prompt"), ({"steps": 0}, "at least 1"), ({"guidance": float("nan")}, "finite")],
)
def test_settings_that_make_no_picture_are_refused(unet: DiffusersModel, settings: dict[str, Any], match: str) -> None:
    values: dict[str, Any] = {"prompts": ["rain"], **settings}
    refused(match, lambda: unet.generate(**values))


def test_a_long_prompt_is_cut_off_with_a_warning(model: DiffusersModel, caplog: pytest.LogCaptureFixture) -> None:
    text = "a" * (TOKENS + 10)
    with caplog.at_level(logging.WARNING, "act_core"):
        long = pixels(model, [text])
        assert f"{text!r} has {TOKENS + 10} tokens, of which a text encoder reads the first {TOKENS}" in caplog.text
        caplog.clear()
        model.batches([text, "rain"], 2)
        assert caplog.text.count("reads the first") == 1
    reads_on = model.name in ("sd3", "flux")  # their T5
    assert (pixels(model, [text + "b"]) == long).all() != reads_on


def test_the_seed_of_a_fit_decides_its_noise(unet: DiffusersModel) -> None:
    def latents(seed: int) -> Any:
        batch: Any = DiffusersModel(unet.pipeline, size=SIZE, seed=seed).batches(SOURCE[:2], 2)[0]
        with torch.no_grad():
            return batch.run().images

    assert torch.equal(latents(3), latents(3))
    assert not torch.equal(latents(3), latents(4))


def test_a_map_of_another_pipeline_is_refused(unet: DiffusersModel, pipeline: Callable[[str], Any]) -> None:
    other = DiffusersModel(pipeline("one encoder"), size=SIZE, components="model")
    refused("none of its", lambda: unet.steer(fitted(other)))


def test_unknown_components_and_branches_are_refused(unet: DiffusersModel) -> None:
    refused("no components 'sound'", lambda: DiffusersModel(unet.pipeline, components="sound"))  # pyright: ignore
    refused("no branch 'left'", lambda: unet.steer(fitted(unet), 1.0, "left"))  # pyright: ignore
