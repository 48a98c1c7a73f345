"""The training of the demo model: what it must never see, what it is told, and that it can be stopped and go on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.train_demo_model import training
from tools.train_demo_model.captions import LENGTH, NO_CAPTION, NO_PHRASE, Captions, train_tokenizer
from tools.train_demo_model.emoji import HELD_OUT, HELD_OUT_PAIRS, STYLES, Emoji, _split
from tools.train_demo_model.training import Chance, Plan, train

CONCEPTS = 200
KEYWORDS = ("animal", "very long keyword of many words that leave no room for a style", "small")


@pytest.fixture(scope="module")
def emoji() -> Emoji:
    names = tuple(f"{colour} {thing}" for colour in ("red", "blue") for thing in ("cat", "old house", "glowing star"))
    images = torch.zeros(len(STYLES), len(names), 3, 1, 1, dtype=torch.uint8)
    return Emoji(images, names, (KEYWORDS,) * len(names), torch.ones(images.shape[:2], dtype=torch.bool))


def test_split_is_reproducible_and_holds_out_the_stated_shares() -> None:
    seen = _split(CONCEPTS)
    assert torch.equal(seen, _split(CONCEPTS))
    emoji = Emoji(torch.empty(0), ("",) * CONCEPTS, ((),) * CONCEPTS, seen)
    assert len(emoji.held_out) == HELD_OUT * CONCEPTS
    assert len(emoji.held_out_pairs) == HELD_OUT_PAIRS * CONCEPTS
    assert not set(emoji.held_out) & {concept for _, concept in emoji.held_out_pairs}
    # Each style loses as many pictures as the others, and no concept more than one.
    assert len({concept for _, concept in emoji.held_out_pairs}) == len(emoji.held_out_pairs)
    assert (~seen).sum(1).unique().numel() == 1


def test_captions_name_the_style_except_sometimes_the_base_style(emoji: Emoji) -> None:
    tokenizer = train_tokenizer(emoji)
    captions, chance, draws = Captions(emoji, tokenizer), random.Random(0), 2000
    for style, (phrase, *_) in enumerate(STYLES):
        ids = [captions.draw(style, chance.randrange(len(emoji.names)), chance) for _ in range(draws)]
        assert {len(own) for own in ids} == {LENGTH}
        assert all(tokenizer.eos_token_id in own for own in ids)
        texts = [str(tokenizer.decode(own, skip_special_tokens=True)).strip() for own in ids]
        told = [text for text in texts if text]
        # Five deviations of a share of 2,000 draws.
        assert len(texts) - len(told) == pytest.approx(NO_CAPTION * draws, abs=70)
        named = sum(text.endswith(phrase) for text in told)
        if style:
            assert named == len(told)
        else:
            assert named == pytest.approx(NO_PHRASE * len(told), abs=110)
        assert all(any(text.startswith(name) for name in emoji.names) for text in told)
        assert any("animal" in text for text in told)


def test_training_resumes_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(torch, "compile", lambda module: module)  # not what is tested, and slow
    calls = 0

    def trained(checkpoint: Path, stop_at: int | None = None) -> tuple[Tensor, list[tuple[int, float]]]:
        torch.manual_seed(0)

        def loss(model: nn.Module, chance: Chance) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=chance.numbers) * chance.words.random()
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        module, curve = train(nn.Linear(4, 1), loss, Plan(12, 1e-2, 0.9), checkpoint, "")
        return module.weight.detach().clone(), curve

    whole, curve = trained(tmp_path / "whole.pt")
    calls = 0
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts.pt", stop_at=6)
    calls = 0
    resumed, curve_of_both = trained(tmp_path / "parts.pt")
    assert calls == 12 - 5
    assert torch.equal(resumed, whole)  # the same steps from the same numbers, so no tolerance
    assert [step for step, _ in curve_of_both] == [step for step, _ in curve] == [12]
    assert not torch.equal(whole, torch.zeros_like(whole))
