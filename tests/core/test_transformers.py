"""Language models: fits, steering, and the perplexity of texts."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from helpers import GLAD, SAD, assert_identical, byte_tokenizer, prompts, swapped, tiny_llama

from act_core import ActMap, MapError, fit, load_map, save_map, steer
from act_core.fitting import MicroBatch
from act_core.models.transformers import TransformersModel

PROSE = (
    "The library opens at nine in the morning, and most of its visitors come to read the newspapers. "
    "In the afternoon, students sit at the long tables and write their essays until the lights go out."
)

PROMPT = "When I woke up this morning, I"


@pytest.fixture(scope="module")
def fitted(smollm2: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> ActMap:
    """A map, fitted, saved and loaded again."""
    act_map = fit(smollm2, SAD, GLAD, sites="norms", batch_size=4)
    return load_map(save_map(act_map, tmp_path_factory.mktemp("maps") / "cheerful.safetensors"))


def test_fit_finds_two_norms_per_layer_of_smollm2(smollm2: TransformersModel, fitted: ActMap) -> None:
    assert len(fitted) == 60 == 2 * smollm2.module.config.num_hidden_layers
    assert {site.channels for site in fitted.transports} == {576}
    assert fitted.components == ("language_model",)


def test_steer_changes_text_except_at_strength_zero(smollm2: TransformersModel, fitted: ActMap) -> None:
    plain = smollm2.generate([PROMPT], max_new_tokens=12)
    with steer(smollm2.module, fitted, 0):
        assert smollm2.generate([PROMPT], max_new_tokens=12) == plain
    with steer(smollm2.module, fitted, 1) as steering:
        assert smollm2.generate([PROMPT], max_new_tokens=12) != plain
        steering.check()
    assert len(steering.coverage.fired) == 60
    assert steering.warnings == ()
    assert smollm2.generate([PROMPT], max_new_tokens=12) == plain
    assert swapped(smollm2.module) == []


def test_causal_fit_moves_source_mean_onto_target_mean(smollm2: TransformersModel) -> None:
    act_map = fit(smollm2, SAD, GLAD, sites="*.input_layernorm, */model.norm", batch_size=4)

    def mean_state(texts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            runs: list[Any] = [smollm2.batches([text], 1)[0].run() for text in texts]
        return torch.stack([run.last_hidden_state.mean((0, 1)) for run in runs]).mean(0)

    source, target = mean_state(SAD), mean_state(GLAD)
    with steer(smollm2.module, act_map):
        steered = mean_state(SAD)
    # The last state is itself a site: what remains is float32 rounding of other batches, through thirty layers.
    assert float((steered - target).norm()) < 0.01 * float((source - target).norm())


def test_perplexity_rises_when_words_are_shuffled(smollm2: TransformersModel) -> None:
    words = PROSE.split()
    random.Random(0).shuffle(words)
    prose, shuffled = smollm2.perplexity([PROSE]), smollm2.perplexity([" ".join(words)])
    assert 1 < prose < shuffled < math.inf


def test_perplexity_is_independent_of_batch_size(smollm2: TransformersModel) -> None:
    texts = [PROSE, "A short text.", "Another one, which is a little longer."]
    # Padding changes the float32 sums.
    assert smollm2.perplexity(texts, batch_size=1) == pytest.approx(smollm2.perplexity(texts, batch_size=3), rel=1e-4)


def test_perplexity_reads_prefix_without_counting_it(smollm2: TransformersModel) -> None:
    first, second = PROSE.split(", and", 1)[0], ", and" + PROSE.split(", and", 1)[1]
    after = smollm2.perplexity([second], [first])
    assert after != pytest.approx(smollm2.perplexity([first + second]), rel=1e-2)
    assert after < smollm2.perplexity([second])  # knowing the beginning helps


def test_perplexity_equals_exp_of_model_loss(llama: TransformersModel) -> None:
    ids = torch.tensor([llama.tokenizer(PROSE)["input_ids"]])
    with torch.no_grad():
        loss = float(llama.module(input_ids=ids, labels=ids).loss)
    assert llama.perplexity([PROSE]) == pytest.approx(math.exp(loss), rel=1e-5)  # summed in another order


def test_perplexity_refuses_empty_texts(llama: TransformersModel) -> None:
    for texts in ([], [""], ["a"]):  # nothing precedes a first token
        with pytest.raises(MapError, match="too short to measure"):
            llama.perplexity(texts)


def test_batches_group_prompts_of_similar_length(llama: TransformersModel) -> None:
    batches = llama.batches(["aaaa", "a", "bbbb", "b"], 2)
    assert [batch.rows for batch in batches] == [2, 2]
    assert [batch.masks for batch in batches] == [{}, {}]


def test_batches_contain_all_prompts(llama: TransformersModel) -> None:
    batches = llama.batches(prompts("source", 7), 3)
    assert [batch.rows for batch in batches] == [3, 3, 1]
    lengths = [n for batch in batches for n in lengths_of(batch)]
    assert sorted(lengths) == sorted(len(prompt) for prompt in prompts("source", 7))


def lengths_of(batch: MicroBatch) -> list[int]:
    with torch.no_grad():
        hidden: Any = batch.run()
    width = hidden.last_hidden_state.shape[1]
    mask = batch.masks.get("language_model")
    return [width] * batch.rows if mask is None else mask.sum(1).tolist()


def test_batches_padding_does_not_change_activations(llama: TransformersModel) -> None:
    short, long = "rain", "a much longer prompt"
    with torch.no_grad():
        alone: Any = llama.batches([short], 1)[0].run()
        padded: Any = llama.batches([short, long], 2)[0].run()
    one, other = (run.last_hidden_state[0, : len(short)] for run in (alone, padded))
    assert torch.allclose(one, other, atol=1e-4)  # float32 in another order, through three layers


def test_fit_works_without_pad_token_and_sets_none() -> None:
    tokenizer = byte_tokenizer()
    model = TransformersModel(tiny_llama().module, tokenizer)
    assert tokenizer.pad_token is None
    assert len(fit(model, prompts("source", 3), prompts("target", 3), sites="norms")) == 6


def test_prompts_longer_than_context_are_refused() -> None:
    model = tiny_llama(context=64)
    long = "x" * 65
    with pytest.raises(MapError, match=r"65 tokens .* do not fit into the model's context of 64; shorten it.*: 'xxx"):
        fit(model, ["a", long], ["b", "c"], sites="norms")
    with pytest.raises(MapError, match="do not fit"):
        model.perplexity([long])
    with pytest.raises(MapError, match="64 tokens and 1 new ones do not fit"):
        model.generate(["x" * 64], max_new_tokens=1)
    assert len(model.generate(["x" * 63], max_new_tokens=1)) == 1


def test_perplexity_refuses_text_that_exceeds_context_with_prefix() -> None:
    model = tiny_llama(context=64)
    with pytest.raises(MapError, match="do not fit"):
        model.perplexity(["x" * 40], ["y" * 40])


@pytest.mark.parametrize("config", [transformers.OlmoConfig, transformers.GraniteConfig, transformers.GemmaConfig])
def test_fit_uses_llama_presets_for_similar_models(config: type[Any]) -> None:
    sizes: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    module: Any = transformers.AutoModelForCausalLM.from_config(config(**sizes, **heads, **ends)).eval()
    model = TransformersModel(module, tiny_llama().tokenizer, "tiny")
    act_map = fit(model, ["a cat", "a house"], ["the cat", "the house"])
    assert [site.name for site in act_map.transports] == [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]
    with steer(module, act_map) as steering:
        model.generate(["a cat"], max_new_tokens=1)
    assert not steering.coverage.silent


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_model_is_fitted_and_generates_like_others(where: str, tmp_path: Path) -> None:
    plain, offloaded = tiny_llama(), tiny_llama()
    if where == "memory":
        accelerate.cpu_offload(offloaded.module, torch.device("cpu"))
    else:
        accelerate.disk_offload(offloaded.module, tmp_path, torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.module.parameters()} == {"meta"}
    maps = [fit(model, prompts("source", 3), prompts("target", 3)) for model in (plain, offloaded)]
    assert_identical(*maps)
    assert maps[0].record.base == maps[1].record.base
    steered: list[list[str]] = []
    for model in (plain, offloaded):
        with model.steer(maps[0]) as steering:
            steered.append(model.generate(["rain"], max_new_tokens=5))
        assert steering.warnings == ()
    assert steered[0] == steered[1]
    assert offloaded.perplexity(["a text"]) == plain.perplexity(["a text"])


def test_weights_that_nothing_loads_are_refused() -> None:
    model = tiny_llama()
    model.module.to("meta")
    with pytest.raises(MapError, match="device 'meta', without values"):
        model.generate(["rain"])


def test_cost_counts_tokens(llama: TransformersModel) -> None:
    assert llama.cost("aaa") == 3
    assert llama.cost("雨") == 3  # bytes


def test_steer_refuses_branch_without_guidance(llama: TransformersModel) -> None:
    act_map = fit(llama, prompts("source", 3), prompts("target", 3))
    with pytest.raises(MapError, match="no negative branch"):
        llama.steer(act_map, 1.0, "negative")
    with pytest.raises(MapError, match="branch is 'left'"):
        llama.steer(act_map, 1.0, "left")  # pyright: ignore[reportArgumentType]
