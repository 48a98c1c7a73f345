"""Prompts inside the chat template of a language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import GLAD, SAD, keys, tiny_llama

from act_core import MapError, fit
from act_core.models.chat import Chat
from act_core.models.transformers import TransformersModel


def test_in_chat_uses_template_of_model(smollm2: TransformersModel) -> None:
    asked = smollm2.in_chat(Chat()).generate(["What is the capital of France?"], max_new_tokens=10, temperature=0)
    assert "Paris" in asked[0]


@pytest.mark.parametrize("chat", [Chat("You write.", "Describe:"), Chat("", "Describe:", answer=True)])
def test_batches_in_chat_mask_everything_but_prompts(smollm2: TransformersModel, chat: Chat) -> None:
    # Words of the template itself among them.
    texts = ["a red house", "two old boats in the harbour", "art", "assistant", "Describe:", "🦊"]
    batch = smollm2.in_chat(chat).batches(texts, 6)[0]
    own_tokens = batch.masks["language_model"]
    run: Any = batch.run
    ids: torch.Tensor = run.keywords["input_ids"]
    own = [smollm2.tokenizer.decode(row[mask]) for row, mask in zip(ids, own_tokens, strict=True)]
    assert sorted(own) == sorted(texts)
    row = own.index("a red house")
    whole = smollm2.tokenizer.decode(ids[row][run.keywords["attention_mask"][row].bool()])
    assert "Describe:" in whole
    assert ("You write." in whole) == bool(chat.system)
    assert whole.rstrip().endswith("a red house<|im_end|>" if chat.answer else "<|im_start|>assistant")


def test_fit_on_answers_differs_from_fit_on_bare_texts(smollm2: TransformersModel) -> None:
    bare = fit(smollm2, SAD, GLAD, sites="*.29.self_attn.o_proj")
    answers = fit(smollm2.in_chat(Chat(user="Go on:", answer=True)), SAD, GLAD, sites="*.29.self_attn.o_proj")
    assert keys(bare) == keys(answers)
    assert max(bare.difference(answers).values()) > 0.1


def test_chat_moves_system_text_to_user_if_template_has_no_system_role(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    )
    batch: Any = llama.in_chat(Chat("You write.", "Describe:")).batches(["a boat"], 1)[0]
    assert llama.tokenizer.decode(batch.run.keywords["input_ids"][0]) == "[user] You write.\n\nDescribe:\n\na boat "


def test_chat_leaves_out_space_around_a_prompt(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    runs: list[Any] = [llama.in_chat(Chat()).batches([text], 1)[0].run for text in ("a boat", " a boat\n")]
    assert torch.equal(*(run.keywords["input_ids"] for run in runs))


def test_chat_reports_failing_template_in_one_sentence(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    for system in ("", "You write."):
        with pytest.raises(MapError, match=r"template cannot be used; use the bare text instead: no such role\."):
            llama.in_chat(Chat(system)).generate(["a boat"])


def test_chat_refuses_template_that_omits_prompt(llama: TransformersModel) -> None:
    llama.tokenizer.chat_template = "{{ messages[0]['role'] }}"
    with pytest.raises(MapError, match="drops the prompt 'a boat'"):
        fit(llama.in_chat(Chat()), ["a boat"] * 2, ["a house"] * 2, sites="norms")


def test_chat_quotes_long_prompt_without_template() -> None:
    model = tiny_llama(context=64)
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    with pytest.raises(MapError, match="shorten it, or ask for fewer: 'xxx"):
        model.in_chat(Chat()).generate(["x" * 60], max_new_tokens=1)


def test_in_chat_refuses_model_without_template(llama: TransformersModel) -> None:
    with pytest.raises(MapError, match="tiny has no chat template"):
        llama.in_chat(Chat())
