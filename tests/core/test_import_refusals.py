"""Files that cannot be imported, or are meant to harm: one sentence each, and nothing is run, followed or allocated."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile_files import confined, gguf_bytes, npy_bytes, rezipped, torch_bytes
from hostile_files import import_refused as refused

from act_core import ActMap, MapError, load_map, save_map
from act_core.interop.importing import import_map
from act_core.mapfile import fields

ONES = torch.ones(8)
DIRECTION = {"direction.1": ONES}


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Greedy:
    """Unpickling it allocates ten gigabytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10_000_000_000,)


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


def with_pickle(content: bytes) -> bytes:
    return rezipped(torch_bytes(ONES), {"/data.pkl": content})


def expanded(channels: int, layers: int = 1) -> bytes:
    """Tensors whose values all lie in the same four bytes."""
    one = torch.ones(1)
    return torch_bytes({layer: one.expand(channels) for layer in range(layers)})


def of_one_storage(layers: int) -> bytes:
    """Vectors of one MiB each that are parts of one tensor and begin a value apart."""
    numbers = torch.ones((1 << 18) + layers)
    return torch_bytes({layer: numbers[layer : layer + (1 << 18)] for layer in range(layers)})


def larger_than_its_entry() -> bytes:
    data = torch_bytes(ONES)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
        content = archive.read(name)
    # The number of values of the storage and of the tensor: 8, written as one byte.
    return with_pickle(content.replace(b"K\x08", b"J\x00\xe4\x0b\x54"))


# Files that call themselves ``a.pt``, with words of the refusal.
TORCH: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "not of a known format"),
    "text": (lambda _: b"just a text", "not of a known format"),
    "cut short": (lambda _: torch_bytes(ONES)[:-40], "damaged archive"),
    "pickle": (lambda trap: pickle.dumps(Trap(trap)), "is a pickle"),
    "pickle of torch's old format": (lambda _: old_format(), "is a pickle"),
    "object inside": (lambda trap: torch_bytes(Trap(trap)), "holds more than tensors"),
    "object beside tensors": (lambda trap: torch_bytes({"1": ONES, "x": Trap(trap)}), "holds more than tensors"),
    "pickle of protocol 4": (lambda trap: with_pickle(pickle.dumps(Trap(trap), 4)), "protocol 4"),
    "unknown protocol": (lambda _: with_pickle(b"\x80\x05N."), "protocol 5"),
    "bytes that are allocated": (lambda _: torch_bytes(Greedy()), "holds more than tensors"),
    "tensor of stride 0": (lambda _: expanded(1_000_000_000_000), "more values than the file holds"),
    "many tensors of stride 0": (lambda _: expanded(1 << 20, 100), "more values than the file holds"),
    "tensors that overlap": (lambda _: of_one_storage(100), "more values than the file holds"),
    "one tensor for many layers": (lambda _: torch_bytes(dict.fromkeys(range(900), torch.ones(1 << 18))), "one vector"),
    "tensor larger than its entry": (lambda _: larger_than_its_entry(), "damaged"),
    "compressed": (lambda _: rezipped(torch_bytes(ONES), {}, zipfile.ZIP_DEFLATED), "compressed"),
    "zip bomb": (lambda _: bomb(), "unpack to more"),
    "zip that is no file of torch": (lambda _: zipped({"../../evil.pkl": b"x"}), "not one of torch.save"),
    "big-endian": (lambda _: rezipped(torch_bytes(ONES), {"/byteorder": b"big"}), "big-endian"),
    "deep": (lambda _: torch_bytes({1: deep(300)}), "9 levels deep"),
    "checkpoint": (lambda _: torch_bytes({"model.embed.weight": torch.ones(4, 4), "b": ONES}), "checkpoint"),
    "checkpoint of one matrix": (lambda _: torch_bytes({"weight": torch.ones(4, 4)}), "give --layer"),
    "whole numbers": (lambda _: torch_bytes({1: torch.ones(8, dtype=torch.int64)}), "floating-point"),
    "no numbers": (lambda _: torch_bytes({1: torch.ones(0)}), "shape"),
    "NaN": (lambda _: torch_bytes({1: ONES * float("nan")}), "not finite"),
    "sparse": (lambda _: torch_bytes({1: ONES.to_sparse()}), "holds more than tensors"),
    "two sizes": (lambda _: torch_bytes({1: ONES, 2: torch.ones(9)}), "different sizes"),
    "name in place of a layer": (lambda _: torch_bytes({"../1": ONES, 2: ONES}), "in place of the number"),
    "negative layer": (lambda _: torch_bytes({-1: ONES}), "no model has"),
    "other kind of layer": (lambda _: torch_bytes({"layer_type": "mlp", "layer_activations": {1: ONES}}), "mlp"),
    "vector without layer": (lambda _: torch_bytes(ONES), "give --layer"),
}


def bomb() -> bytes:
    """Some kilobytes that unpack to 64 megabytes."""
    return rezipped(torch_bytes(ONES), {"data/0": bytes(1 << 26)}, zipfile.ZIP_DEFLATED)


def old_format() -> bytes:
    file = io.BytesIO()
    torch.save(ONES, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def zipped(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("name", TORCH)
def test_torch_file_is_refused(tmp_path: Path, name: str) -> None:
    build, words = TORCH[name]
    trap = tmp_path / "sprung"
    path = tmp_path / "a.pt"
    path.write_bytes(build(trap))
    with confined(tmp_path):
        refused(path, words)
    assert os.listdir(tmp_path) == ["a.pt"]


NPY: dict[str, tuple[bytes, str]] = {
    "objects": (npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(1)), "not an array"),
    "ten gigabytes": (
        npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000,), }", bytes(900)),
        "not what the file holds",
    ),
    "numbers that overflow": (
        npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"),
        "not what the file holds",
    ),
    "expression": (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2**9999,), }"), "not an array"),
    "whole numbers": (npy_bytes("{'descr': '<i4', 'fortran_order': False, 'shape': (1,), }", bytes(4)), "not an array"),
    "columns": (npy_bytes("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", bytes(4)), "not an array"),
    "nothing": (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }"), "not what the file holds"),
    "header alone": (b"\x93NUMPY", "not an array"),
    "NaN": (
        npy_bytes(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", np.array([1, np.nan], np.float32).tobytes()
        ),
        "not finite",
    ),
}


@pytest.mark.parametrize("name", NPY)
def test_numpy_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(NPY[name][0])
    with confined(tmp_path):
        refused(path, NPY[name][1], layers=[1])


GGUF: dict[str, tuple[bytes, str]] = {
    "magic alone": (b"GGUF", "cut short"),
    "cut short": (gguf_bytes(DIRECTION)[:-8], "not inside the file"),
    "version 1": (gguf_bytes(DIRECTION, version=1), "GGUF version 1"),
    "version of the future": (gguf_bytes(DIRECTION, version=4), "GGUF version 4"),
    "big-endian": (gguf_bytes(DIRECTION, version=3 << 24), "big-endian"),
    "ten gigabytes of numbers": (gguf_bytes(DIRECTION, shape=[2_500_000_000]), "not inside the file"),
    "sizes that overflow": (gguf_bytes(DIRECTION, shape=[1 << 63, 1 << 63]), "not inside the file"),
    "many tensors": (gguf_bytes(DIRECTION, tensors=1 << 40), "more than any model"),
    "many values": (gguf_bytes(DIRECTION, keys=1 << 40), "more than any model"),
    "more tensors than there are": (gguf_bytes(DIRECTION, tensors=500), "save it again"),
    "no tensors": (gguf_bytes({}), "holds no vector"),
    "matrix": (gguf_bytes({"direction.1": torch.ones(4, 2)}), "not one axis"),
    "no axes": (gguf_bytes(DIRECTION, shape=[]), "0 axes"),
    "empty tensor": (gguf_bytes({"direction.1": torch.ones(0)}), "not that of a vector"),
    "empty matrix": (gguf_bytes({"direction.1": torch.ones(1, 0)}), "not that of a vector"),
    "tensors that overlap": (
        gguf_bytes({f"direction.{n}": torch.ones(1 << 18) for n in range(100)}, overlapping=True),
        "more values than the file holds",
    ),
    "half precision": (gguf_bytes(DIRECTION, kind=1), "type 1"),
    "quantised": (gguf_bytes(DIRECTION, kind=8), "type 8"),
    "other tensor": (gguf_bytes({"output.weight": ONES}), "not a direction"),
    "path as a name": (gguf_bytes({"direction.../../1": ONES}), "not a direction"),
    "negative layer": (gguf_bytes({"direction.-1": ONES}), "not a direction"),
    "two sizes": (gguf_bytes({"direction.1": ONES, "direction.2": torch.ones(9)}), "different sizes"),
    "NaN": (gguf_bytes({"direction.1": ONES * float("nan")}), "not finite"),
    "model": (gguf_bytes({"token_embd.weight": ONES}, {"general.architecture": "llama"}), "a model (llama)"),
    "no architecture": (gguf_bytes(DIRECTION, {}), "another kind of GGUF file"),
    "control characters": (
        gguf_bytes(DIRECTION, {"general.architecture": "\x1b[31mevil\n"}),
        "not a control vector",
    ),
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(GGUF[name][0])
    with confined(tmp_path):
        text = refused(path, GGUF[name][1])
    assert text.isprintable()


def test_vectors_of_another_size_are_refused(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({"direction.1": torch.ones(1536)}))
    refused(path, "1536 channels", "the model has 32", model=tiny)
    path.write_bytes(gguf_bytes({"direction.3": torch.ones(32)}))
    refused(path, "block 3", "end with 2", "--layer-offset", model=tiny)


def test_unknown_model_asks_for_its_kind(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "a.gguf"
    for hint, words in (("", "--architecture"), ("flying pig", "'flying pig' is not known")):
        values = {"general.architecture": "controlvector", "controlvector.model_hint": hint}
        path.write_bytes(gguf_bytes(DIRECTION, values))
        refused(path, words, architecture=None)
    refused(path, "'flying horse' is not known", architecture="flying horse")
    refused(path, "give one of the two", architecture="qwen2", model=tiny)
    refused(path, "model folder", architecture=None, model=tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    refused(path, "configuration", architecture=None, model=tmp_path)


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_bytes({1: ONES}))
    refused(path, "leave out --layer", layers=[1])
    path.write_bytes(torch_bytes({-1: ONES}))
    refused(path, "block -1, which no model has")
    path.write_bytes(torch_bytes(torch.ones(3, 8)))
    refused(path, "3 vectors for 2 layers", layers=[1, 2])
    refused(path, "twice", layers=[1, 1, 2])
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(gguf_bytes(DIRECTION))
    refused(gguf, "leave out --layer", layers=[1])
    refused(gguf, "no model has", layer_offset=-2)


def test_files_of_other_kinds_are_refused(tmp_path: Path, fitted: ActMap) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"lora_unet_down.lora_up.weight": torch.ones(4, 4)}, path)
    refused(path, "is a LoRA")
    safetensors.torch.save_file({"model.diffusion_model.out.0.weight": torch.ones(4)}, path)
    refused(path, "not an ACT map")
    save_map(fitted, path)
    refused(path, "is an ACT map", "which Load ACT Map takes")
    refused(tmp_path / "gone.gguf", "No such file")
    with pytest.raises(MapError, match="null"):
        import_map(tmp_path / "a\0b.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "not a file")


def test_file_of_several_gigabytes_is_not_read(tmp_path: Path) -> None:
    for name, head in (("a.pt", b"PK\x03\x04"), ("a.npy", b"\x93NUMPY")):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(head)
            file.truncate(10_000_000_000)  # takes no space on disk
        refused(path, "checkpoint", layers=[1])


def test_map_file_refuses_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    with pytest.raises(MapError, match="not a file"):
        load_map(path)


PATHS = ["..", "a..b", ".a", "a.", "/etc/passwd", "a/b", "..\\a", "C:\\a"]


@pytest.mark.parametrize("name", [*PATHS, "a\n", "a\x1b[0m", "a\u202eb", "", "a" * 501, 7])
def test_identifiers_are_dotted_names(name: object) -> None:
    with pytest.raises(ValueError, match="not a name of at most 500 characters"):
        fields.identifier("the name of a site", name)
