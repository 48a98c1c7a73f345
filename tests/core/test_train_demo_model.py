"""The training of the demo model: what it must never see, what it is told, and that it can be stopped and go on."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.train_demo_model import training
from tools.train_demo_model.captions import LENGTH, NO_CAPTION, NO_PHRASE, Captions, train_tokenizer
from tools.train_demo_model.emoji import HELD_OUT, HELD_OUT_PAIRS, STYLES, Emoji, _split
from tools.train_demo_model.optimizer import orthogonalized
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


PLAN = Plan(steps=12, decay_steps=4, rate=1e-2, muon_rate=1e-2, average=0.9, parts=2)


class Regression(nn.Module):
    """Learns the sum of its inputs; one of its two layers is large enough for Muon."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(20, 20)
        self.last = nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x))


def run(
    checkpoint: Path, plan: Plan = PLAN, stop_at: int | None = None
) -> tuple[nn.Module, list[tuple[int, float]], int]:
    """Train one; also returns how often the loss was asked for. With `stop_at`, that call interrupts the training."""
    torch.manual_seed(0)
    calls = itertools.count(1)

    def loss(model: nn.Module, chance: Chance) -> Tensor:
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 20, generator=chance.numbers) * chance.words.random()
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return *train(Regression(), loss, plan, checkpoint, ""), next(calls) - 1


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])  # the same operations on the same numbers


@pytest.mark.parametrize("stop_at", [10, 20])
def test_training_resumes_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    whole, curve, calls = run(tmp_path / "whole.pt")
    assert calls == PLAN.steps * PLAN.parts
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts.pt", stop_at=stop_at)
    resumed, resumed_curve, calls = run(tmp_path / "parts.pt")
    # The step that was interrupted runs again.
    assert calls == (PLAN.steps - (stop_at - 1) // PLAN.parts) * PLAN.parts
    assert_same_weights(resumed, whole)
    assert [step for step, _ in resumed_curve] == [step for step, _ in curve] == [PLAN.steps]


def test_training_of_more_steps_continues_from_the_constant_phase_of_a_shorter_one(tmp_path: Path) -> None:
    longer = PLAN.of_length(24)
    assert longer.decay_steps == 8
    whole, *_ = run(tmp_path / "whole.pt", longer)
    run(tmp_path / "parts.pt")
    resumed, _, calls = run(tmp_path / "parts.pt", longer)
    assert calls == (longer.steps - (PLAN.steps - PLAN.decay_steps)) * PLAN.parts
    assert_same_weights(resumed, whole)


def test_training_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "checkpoint.pt", PLAN.of_length(24))
    with pytest.raises(ValueError, match="past the start of the decay"):
        run(tmp_path / "checkpoint.pt")


def test_learning_rate_rises_stays_and_falls() -> None:
    plan = PLAN.of_length(1000)
    factors = [plan.factor(step) for step in range(plan.steps)]
    decay_starts = plan.steps - plan.decay_steps
    assert factors[0] == pytest.approx(1 / training.WARMUP)
    assert set(factors[training.WARMUP : decay_starts]) == {1.0}
    assert factors[decay_starts:] == sorted(factors[decay_starts:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_moving_average_soon_forgets_the_random_start(tmp_path: Path) -> None:
    def loss(model: nn.Module, _: Chance) -> Tensor:
        return (model(torch.ones(1, 4)) - 5).square().mean()

    average, _ = train(nn.Linear(4, 1), loss, Plan(300, 100, 0.1, 0.0, 0.9999), tmp_path / "c.pt", "")
    with torch.inference_mode():
        # With a constant decay, 97% of the average would still be the start, whose output is near 0.
        assert float(average(torch.ones(1, 4))) == pytest.approx(5, abs=0.5)


def test_training_that_diverges_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower the rates"):
        train(nn.Linear(4, 1), lambda model, _: model(torch.full((1, 4), torch.nan)).sum(), PLAN, tmp_path / "c.pt", "")


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 30, 20)])
def test_orthogonalized_has_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    # The coefficients trade accuracy for speed: Jordan et al. give 0.7 to 1.2, bfloat16 adds a little.
    assert values.min() > 0.6
    assert values.max() < 1.3
    # The directions stay those of the nearest semi-orthogonal matrix.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert ((orthogonalized(matrices) * (u @ v)).sum((1, 2)) > 0.8 * min(shape[1:])).all()
