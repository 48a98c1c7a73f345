"""Encoder-decoder language models: both halves are fitted and steered."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from command_line import Run
from helpers import GLAD, SAD, assert_identical, byte_tokenizer, prompts, randomise, swapped, tiny_llama
from torch import Tensor

from act_core import ActMap, MapError, fit, load_map, save_map
from act_core.discovery import discover
from act_core.errors import FitError
from act_core.models.chat import Chat
from act_core.models.encoder_decoder import EncoderDecoderModel

ENDS = {"pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
T5_SIZES = {"vocab_size": 257, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, **ENDS}
BART_SIZES: dict[str, Any] = {
    "vocab_size": 257,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "forced_eos_token_id": None,
    "bos_token_id": 1,
    **ENDS,
}
MIXTURE = {
    "num_decoder_layers": 2,
    "num_experts": 2,
    "expert_capacity": 64,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}
# Attention in a block of the encoder and of the decoder, and MLP.
T5_PARTS = (1, 2, "DenseReluDense.wo")
KINDS: dict[str, tuple[dict[str, Any], tuple[int, int, str]]] = {
    "t5": (T5_SIZES, T5_PARTS),
    "mt5": (T5_SIZES, T5_PARTS),
    "umt5": (T5_SIZES, T5_PARTS),
    "bart": (BART_SIZES, (1, 2, "fc2")),
    "mbart": (BART_SIZES, (1, 2, "fc2")),
    "pegasus": (BART_SIZES, (1, 2, "fc2")),
    "switch_transformers": ({**T5_SIZES, **MIXTURE}, (1, 2, "mlp")),
}


def built(kind: str) -> EncoderDecoderModel:
    config = transformers.CONFIG_MAPPING[kind](**KINDS[kind][0])
    module = randomise(transformers.AutoModelForSeq2SeqLM.from_config(config), scale=0.2).eval()
    return EncoderDecoderModel(module, byte_tokenizer(), kind)  # pyright: ignore[reportArgumentType]


shared = cache(built)


def keys_of(model: EncoderDecoderModel, sites: str) -> list[str]:
    batch = model.batches(["rain", "sunny"], 2)[0]
    with torch.inference_mode():
        return [site.key for site in discover(model.components, sites, batch.run, batch.rows)]


def states(model: EncoderDecoderModel, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Mean over the prompts of the last states of encoder and decoder."""
    with torch.inference_mode():
        runs: list[Any] = [model.batches([text], 1)[0].run() for text in texts]
        heads = [run.encoder_last_hidden_state.mean((0, 1)) for run in runs]
    return torch.stack(heads).mean(0), torch.stack([run.logits[0, 0] for run in runs]).mean(0)


@pytest.mark.parametrize("kind", KINDS)
def test_presets_find_the_parts_of_both_halves(kind: str) -> None:
    model, (encoder, decoder, mlp) = shared(kind), KINDS[kind][1]
    attention = keys_of(model, "attention")
    assert [key.partition("/")[0] for key in attention] == ["encoder"] * 2 * encoder + ["decoder"] * 2 * decoder
    assert keys_of(model, "auto") == attention
    found = keys_of(model, "mlp")
    assert len(found) == 4
    assert all(key.partition("#")[0].endswith(mlp) for key in found)
    assert len(keys_of(model, "blocks")) == 4
    assert len(keys_of(model, "norms")) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_map_of_both_halves_is_fitted_saved_and_applied(kind: str, tmp_path: Path) -> None:
    model = built(kind)
    plain = states(model, SAD)
    written = model.generate(SAD[:2], max_new_tokens=6, temperature=0)
    act_map = load_map(save_map(fit(model, SAD, GLAD, sites="attention, mlp"), tmp_path / "map.safetensors"))
    assert act_map.components == ("encoder", "decoder")
    for strength, changes in ((0.0, False), (1.0, True)):
        with model.steer(act_map, strength) as steering:
            pairs = list(zip(states(model, SAD), plain, strict=True))
            assert [not torch.equal(one, other) for one, other in pairs] == [changes] * 2
            again = model.generate(SAD[:2], max_new_tokens=6, temperature=0)
            assert changes or again == written
        assert steering.warnings == ()
        assert len(steering.coverage.fired) == len(act_map) or not changes
    assert all(torch.equal(*pair) for pair in zip(states(model, SAD), plain, strict=True))
    assert swapped(model.module) == []


def test_causal_fit_moves_both_halves_onto_the_target() -> None:
    model = shared("t5")
    act_map = fit(model, SAD, GLAD, sites="output")
    assert [site.key for site in act_map.transports] == ["encoder/final_layer_norm", "decoder/final_layer_norm"]
    target = states(model, GLAD)
    with model.steer(act_map):
        steered = states(model, SAD)
    for one, other, before in zip(steered, target, states(model, SAD), strict=True):
        assert float((one - other).norm()) < 0.01 * float((before - other).norm())


def test_halves_have_strengths_of_their_own() -> None:
    model = shared("t5")
    act_map = fit(model, SAD, GLAD, sites="output")
    plain = states(model, SAD)
    with model.steer(act_map, {"encoder": 0.0, "decoder": 1.0}):
        encoder, decoder = states(model, SAD)
    assert torch.equal(encoder, plain[0])
    assert not torch.equal(decoder, plain[1])


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_padding_does_not_count(kind: str) -> None:
    model = shared(kind)
    sides = prompts("source", 5), prompts("target", 5)
    alone, padded = (fit(model, *sides, sites="norms", order="simultaneous", batch_size=size) for size in (1, 5))
    # Sums of float32 in another order; slopes of channels that hardly vary amplify it.
    for site, transport in alone.transports.items():
        torch.testing.assert_close(padded.transports[site].beta, transport.beta, rtol=1e-2, atol=1e-3)


def test_encoder_tokens_seen_by_the_decoder_are_not_its_own() -> None:
    with pytest.raises(FitError, match=r"Site decoder/block\.0\.layer\.1\.EncDecAttention\.k has \d+ tokens"):
        fit(shared("t5"), SAD, GLAD, sites="decoder/*EncDecAttention.k")


def test_generate_answers_each_prompt_alone_as_in_a_batch() -> None:
    for kind in ("t5", "bart"):
        model = shared(kind)
        texts = ["rain", "a much longer prompt than the other"]
        together = model.generate(texts, max_new_tokens=6, temperature=0)
        assert together == [model.generate([text], max_new_tokens=6, temperature=0)[0] for text in texts]


def test_generate_calls_step_and_depends_on_seed() -> None:
    model, steps = shared("t5"), list[int]()
    one, again, other = (
        model.generate(["rain"], max_new_tokens=8, temperature=2, seed=seed, step=lambda: steps.append(1))
        for seed in (3, 3, 4)
    )
    assert one == again != other
    assert len(steps) <= 24


def test_perplexity_is_that_of_the_model_loss() -> None:
    model = shared("t5")
    ids, labels = (torch.tensor([model.tokenizer(text)["input_ids"]]) for text in ("rain falls", "all day"))
    start = torch.cat([torch.tensor([[1]]), labels[:, :-1]], 1)
    with torch.no_grad():
        loss = float(model.module(input_ids=ids, decoder_input_ids=start, labels=labels).loss)
    assert model.perplexity(["all day"], ["rain falls"]) == pytest.approx(math.exp(loss), rel=1e-5)  # another order
    two = model.perplexity(["all day", "no"], ["rain falls", "x"], batch_size=1)
    assert model.perplexity(["all day", "no"], ["rain falls", "x"]) == pytest.approx(two, rel=1e-4)
    with pytest.raises(MapError, match="give the prompts of the texts as `after`"):
        model.perplexity(["all day"])
    with pytest.raises(MapError, match="too short"):
        model.perplexity([""], ["rain"])


def test_offloaded_model_has_the_same_map(tmp_path: Path) -> None:
    plain, offloaded = built("t5"), built("t5")
    accelerate.disk_offload(offloaded.module, tmp_path, torch.device("cpu"))
    maps: list[ActMap] = [fit(model, SAD, GLAD, sites="all") for model in (plain, offloaded)]
    assert_identical(*maps)


# --- what is refused


def test_saved_model_loads(tmp_path: Path, run: Run) -> None:
    model, folder = built("t5"), tmp_path / "mine"
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    loaded = EncoderDecoderModel.from_pretrained(folder)
    assert loaded.name == "mine"
    assert loaded.generate(["rain"], temperature=0) == model.generate(["rain"], temperature=0)
    (tmp_path / "mood.txt").write_text("\n".join(["[source]", *SAD, "[target]", *GLAD]), "utf-8")
    out = tmp_path / "mood.safetensors"
    status, _, errors = run("fit", "--model", folder, "--prompts", tmp_path / "mood.txt", "--out", out)
    assert (status, errors) == (0, "")
    assert load_map(out).components == ("encoder", "decoder")


def test_causal_model_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    with pytest.raises(MapError, match="'llama', which is not an encoder-decoder model; use one such as T5"):
        EncoderDecoderModel(model.module, byte_tokenizer(), "mine")
    model.module.save_pretrained(tmp_path)
    with pytest.raises(MapError, match="which is not an encoder-decoder model"):
        EncoderDecoderModel.from_pretrained(tmp_path)


def test_model_without_head_and_chat_are_refused() -> None:
    model = shared("t5")
    with pytest.raises(MapError, match="no head that writes tokens; load it with AutoModelForSeq2SeqLM"):
        EncoderDecoderModel(transformers.T5Model(model.module.config), byte_tokenizer(), "mine")
    with pytest.raises(MapError, match="without a chat template"):
        model.in_chat(Chat())
