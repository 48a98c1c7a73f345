"""Loading language models from GGUF files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from helpers import byte_tokenizer, hide_packages, randomise
from language_models import LAYERS, SIZES, built
from tokenizers.pre_tokenizers import ByteLevel

from act_core import MapError, fit, load_map, save_map, steer
from act_core.models import gguf as unpacking
from act_core.models.gguf import content_id
from act_core.models.transformers import TransformersModel

# What transformers adds to the tokenizer of each such file.
QWEN2_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_gguf_refuses_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(MapError, match=r"mine\.gguf"):
        TransformersModel.from_pretrained(path)
    assert list((tmp_path / "cache" / "act-steering").iterdir()) == []


def test_gguf_content_id_depends_on_content_alone(tmp_path: Path) -> None:
    first, moved, other, longer = (tmp_path / folder / "m.gguf" for folder in ("a", "b", "c", "d"))
    contents = {first: b"one", moved: b"one", other: b"two", longer: b"one" * 2}
    for path, content in contents.items():
        path.parent.mkdir()
        path.write_bytes(content)
    assert content_id(first) == content_id(moved)
    assert len({content_id(path) for path in (first, other, longer)}) == 3


def test_gguf_content_id_notices_one_layer(tmp_path: Path) -> None:
    path, size, layer = tmp_path / "m.gguf", 64 << 20, 1 << 20
    ids: set[str] = set()
    for at in (None, 0, 5 << 20, 37 << 20, size - layer):
        content = bytearray(size)
        if at is not None:
            content[at : at + layer] = bytes([1]) * layer
        path.write_bytes(content)
        ids.add(content_id(path))
    assert len(ids) == 5


def test_gguf_refuses_unknown_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "voice.gguf"
    writer = gguf.GGUFWriter(path, "no_such_architecture")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(MapError, match=r"voice\.gguf could not be unpacked.*no_such_architecture"):
        TransformersModel.from_pretrained(path)
    assert list((tmp_path / "cache" / "act-steering").iterdir()) == []


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_gguf_names_command_that_installs_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    hide_packages(monkeypatch, missing)
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(MapError, match="pip install gguf accelerate"):
        TransformersModel.from_pretrained(tmp_path / "mine.gguf")


def test_gguf_unpacks_once_and_announces_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(unpacking, "_dequantise", lambda _file, folder: folder.mkdir())
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")
    with caplog.at_level(logging.INFO, "act_core"):
        folder = unpacking.unpacked(path)
        assert folder.is_dir()
        assert caplog.text.count("Unpacking mine.gguf") == 1
        assert unpacking.unpacked(path) == folder
    assert caplog.text.count("Unpacking mine.gguf") == 1


def written(module: torch.nn.Module, path: Path) -> Path:
    """A small Qwen2 model as a GGUF file, with float32 weights and one token for each byte."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(LAYERS)
    tokens = ["<end>", *sorted(ByteLevel.alphabet()), *QWEN2_TOKENS]
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, LAYERS)
    for name, values in module.state_dict().items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place is not None
        writer.add_tensor(place, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_map_of_gguf_file_steers_model_folder_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module: Any = built("qwen2")
    module.resize_token_embeddings(SIZES["vocab_size"] + len(QWEN2_TOKENS))
    randomise(module)
    module.save_pretrained(tmp_path / "folder")
    byte_tokenizer().save_pretrained(tmp_path / "folder")
    written(module, tmp_path / "m.gguf")
    models = [TransformersModel.from_pretrained(tmp_path / name) for name in ("m.gguf", "folder")]
    tokens = [model.tokenizer("the rain has stopped", return_tensors="pt") for model in models]
    assert tokens[0]["input_ids"].equal(tokens[1]["input_ids"])
    fitted = [fit(model, ["rain", "a grey day"], ["sun", "a blue sky"], sites="norms,attention") for model in models]
    assert list(fitted[0].transports) == list(fitted[1].transports)
    for number, act_map in enumerate(fitted):
        loaded = load_map(save_map(act_map, tmp_path / f"{number}.safetensors"))
        plain, steered = [], []
        for model in models:
            with torch.inference_mode(), steer(model, loaded) as steering:
                steered.append(model.module(**tokens[0]).logits)
            assert steering.warnings == ()
            with torch.inference_mode():
                plain.append(model.module(**tokens[0]).logits)
        assert plain[0].equal(plain[1])
        assert steered[0].equal(steered[1])
        assert (steered[0] - plain[0]).abs().max() > 0.1 * plain[0].std()
