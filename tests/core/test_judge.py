"""The judge that benchmarks of pictures use, on pictures that the demo model draws."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from act_core.demo.pictures import demo_model
from benchmarks.lib import judge as judges
from benchmarks.lib.controls import exchanged
from benchmarks.lib.judge import load_judge
from benchmarks.lib.pictures import draw, kept
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES

SUBJECTS = ("cat", "rocket", "red apple", "house", "guitar", "umbrella")


def test_judge_knows_styles_and_subjects() -> None:
    judge, model = load_judge(), demo_model()
    drawn = [draw(model, [caption(name, (), style) for name in SUBJECTS], steps=8) for style in range(len(STYLES))]
    styles, features = zip(*(judge.ask(images) for images in drawn), strict=True)
    right = [found.argmax(1) == style for style, found in enumerate(styles)]
    # Of pictures of these styles, it recognises nine in ten; by chance, one in five.
    assert torch.cat(right).double().mean() >= 0.8
    for one, other in pairwise(features):
        assert ((one @ other.T).argmax(1) == torch.arange(len(SUBJECTS))).double().mean() >= 0.5


def test_judge_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(judges, "autoencoder_sha256", lambda: "")
    with pytest.raises(SystemExit):
        load_judge()
    assert "run 'python -m benchmarks.lib.train_judge'" in capsys.readouterr().err


def test_content_is_1_for_the_same_picture_and_0_for_an_average_other_one() -> None:
    wanted = torch.eye(4, dtype=torch.double)
    torch.testing.assert_close(kept(wanted, wanted), torch.ones(4, dtype=torch.double))
    assert float(kept(wanted.roll(1, 0), wanted).mean()) < 0
    mean = torch.full((4, 4), 0.25, dtype=torch.double)
    torch.testing.assert_close(kept(mean, wanted), torch.zeros(4, dtype=torch.double))


def test_exchanged_sides_have_half_of_each_and_lose_nothing() -> None:
    one, other = exchanged(["a", "b", "c", "d"], ["A", "B", "C", "D"])
    assert sorted(one) == ["B", "D", "a", "c"]
    assert sorted(other) == ["A", "C", "b", "d"]
