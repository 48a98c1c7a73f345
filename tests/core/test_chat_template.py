"""The tokens that a tokenizer puts around every prompt, in lists of numbers that stand in for its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "nodes" / "host" / "chat_template.py"


@pytest.fixture(scope="module")
def template() -> Any:
    """Three tokens before every prompt, and two after it."""
    spec = importlib.util.spec_from_file_location("chat_template", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ChatTemplate.of([1, 2, 3, 50, 8, 9], [1, 2, 3, 60, 61, 62, 8, 9])


def test_template_is_what_two_prompts_share(template: Any) -> None:
    assert (list(template.before), list(template.after)) == ([1, 2, 3], [8, 9])


@pytest.mark.parametrize(
    ("ids", "prompt"),
    [
        ([1, 2, 3, 70, 71, 8, 9], [70, 71]),
        ([1, 2, 3, None, 71, 8, 9], [None, 71]),  # an embedding
        ([1, 2, 3, 3, 8, 8, 9], [3, 8]),  # begins and ends like the template
        ([1, 2, 3, 8, 9], []),
        ([1, 2, 3, 70, 71], [70, 71]),  # cut off
        ([1, 2], []),
        ([], []),
    ],
)
def test_prompt_is_between(template: Any, ids: list[int | None], prompt: list[int | None]) -> None:
    assert ids[template.prompt(ids)] == prompt


def test_no_tokens_around_prompts(template: Any) -> None:
    bare = type(template).of([50], [60, 61])
    assert (bare.before, bare.after) == ([], [])
    assert [70, 71][bare.prompt([70, 71])] == [70, 71]
