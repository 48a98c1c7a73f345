"""Maps of estimator mean on block outputs as GGUF control vectors, by the rules of llama.cpp."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from helpers import GLAD, SAD, tiny_llama
from torch import Tensor

from act_core import ActMap, MapError, fit
from act_core.gates import Gate
from act_core.interop.control_vectors import export_control_vector
from act_core.interop.importing import import_map
from act_core.records import Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Transport, stacked

WIDTH = 8


def block(number: int, *, name: str = "model.layers.{}", output: int | None = None, width: int = WIDTH) -> Site:
    return Site("language_model", name.format(number), output, "tokens", width)


def shift(number: int, width: int = WIDTH) -> Transport:
    values = torch.randn(width, generator=torch.Generator().manual_seed(number))
    return Transport(torch.ones(width), values)


def mean_map(*numbers: int, model_class: str = "Qwen2ForCausalLM") -> ActMap:
    record = FitRecord(estimator="mean", base={"language_model": Fingerprint("llama", "", model_class)})
    return ActMap({block(number): shift(number) for number in numbers}, record)


def read_as_llama_cpp(path: Path) -> dict[int, Tensor]:
    """The vector of each block by the rules of llama.cpp, read with the reader of the gguf package."""
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    vectors: dict[int, Tensor] = {}
    for tensor in reader.tensors:
        word, _, number = tensor.name.partition(".")
        assert word == "direction"
        assert int(number) > 0
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert len(tensor.shape) == 1
        assert tensor.data_offset % reader.alignment == 0
        vectors[int(number)] = torch.from_numpy(tensor.data.copy())
    assert len({len(vector) for vector in vectors.values()}) == 1
    return vectors


def test_control_vector_is_read_by_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "calm.gguf"
    act_map = mean_map(1, 2, 11)
    assert export_control_vector(act_map, path) == ()
    vectors = read_as_llama_cpp(path)
    assert list(vectors) == [1, 2, 11]
    for number, vector in vectors.items():
        assert torch.equal(vector, act_map[f"language_model/model.layers.{number}"].beta)
    fields = gguf.GGUFReader(path).fields
    assert fields["controlvector.model_hint"].contents() == "qwen2"
    assert fields["controlvector.layer_count"].contents() == 3


def test_export_and_import_give_the_same_map(tmp_path: Path) -> None:
    path = tmp_path / "calm.gguf"
    act_map = mean_map(1, 2, 11)
    export_control_vector(act_map, path)
    imported = import_map(path)
    assert list(imported.transports) == list(act_map.transports)
    assert imported.difference(act_map) == dict.fromkeys(imported.difference(act_map), 0.0)
    again = tmp_path / "again.gguf"
    export_control_vector(imported, again)
    assert again.read_bytes() == path.read_bytes()


def test_fitted_map_is_exported_without_its_first_block(tmp_path: Path) -> None:
    path = tmp_path / "glad.gguf"
    act_map = fit(tiny_llama(), source=SAD, target=GLAD, sites="blocks", estimator="mean")
    notes = export_control_vector(act_map, path)
    assert len(notes) == 1
    assert notes[0].startswith("Block 0 is left out")
    assert list(read_as_llama_cpp(path)) == [1, 2]
    imported = import_map(path)
    rest = act_map.restrict("*.1", "*.2")
    assert imported.difference(rest) == dict.fromkeys(imported.difference(rest), 0.0)


def test_note_gives_share_of_first_block(tmp_path: Path) -> None:
    one, three = (Transport(torch.ones(WIDTH), torch.full((WIDTH,), beta)) for beta in (2.0, 12.0**0.5))
    notes = export_control_vector(ActMap({block(0): one, block(1): three}), tmp_path / "a.gguf")
    assert "25% of the squared shift" in notes[0]


@pytest.mark.parametrize(
    ("name", "output"), [("transformer.h.{}", None), ("gpt_neox.layers.{}", None), ("model.layers.{}", 0)]
)
def test_blocks_of_other_models_are_exported(tmp_path: Path, name: str, output: int | None) -> None:
    path = tmp_path / "a.gguf"
    export_control_vector(ActMap({block(3, name=name, output=output): shift(3)}), path)
    assert list(read_as_llama_cpp(path)) == [3]


UNBOUND = shift(1)
REFUSED: dict[str, tuple[dict[Site, Transport], str]] = {
    "slopes": ({block(1): replace(UNBOUND, omega=torch.full((WIDTH,), 1.01))}, "also scales"),
    "support": ({block(1): replace(UNBOUND, low=-torch.ones(WIDTH), high=torch.ones(WIDTH))}, "observed support"),
    "gate": ({block(1): replace(UNBOUND, gate=Gate.unpacked(torch.ones(WIDTH + 1)))}, "gated support"),
    "norm": ({block(1, name="model.layers.{}.input_layernorm"): UNBOUND}, "not the output of a block"),
    "second output": ({block(1, output=1): UNBOUND}, "not the output of a block"),
    "feature maps": ({replace(block(1), layout="spatial"): UNBOUND}, "not the output of a block"),
    "two stacks": ({block(1): UNBOUND, block(1, name="vision.layers.{}"): UNBOUND}, "not the output of a block"),
    "two components": ({block(1): UNBOUND, replace(block(2), component="t5xxl"): UNBOUND}, "restrict it to one"),
    "two sizes": ({block(1): UNBOUND, block(2, width=4): shift(2, 4)}, "different sizes"),
    "block 0 alone": ({block(0): UNBOUND}, "block 0 alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_maps_are_refused(tmp_path: Path, name: str) -> None:
    transports, words = REFUSED[name]
    with pytest.raises(MapError, match=words):
        export_control_vector(ActMap(transports), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("component", "architecture"),
    [("diffusion_model", "WanModel"), ("diffusion_model", ""), ("clip_l", "clip_text_model"), ("t5xxl", "t5")],
)
def test_maps_of_other_models_are_refused(tmp_path: Path, component: str, architecture: str) -> None:
    site = replace(block(3, name="blocks.{}"), component=component)
    base = {component: Fingerprint(architecture, "")} if architecture else {}
    with pytest.raises(MapError, match=f"steers {architecture or component}, which is not a language model; only"):
        export_control_vector(ActMap({site: UNBOUND}, FitRecord(base=base)), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_map_with_noise_levels_is_refused(tmp_path: Path) -> None:
    act_map = ActMap({block(1): stacked([UNBOUND, UNBOUND])}, levels=(0.9, 0.5))
    with pytest.raises(MapError, match="noise level"):
        export_control_vector(act_map, tmp_path / "a.gguf")


def test_export_refuses_other_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MapError, match=r"must end in \.gguf"):
        export_control_vector(mean_map(1), tmp_path / "a.safetensors")
    with pytest.raises(MapError, match="could not be written"):
        export_control_vector(mean_map(1), tmp_path / "missing" / "a.gguf")

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MapError, match="No space left"):
        export_control_vector(mean_map(1), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []
