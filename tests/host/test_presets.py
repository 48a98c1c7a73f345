"""The presets match all parts of the host's full-size models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_host import run_inside

EXPECTED = {
    # 70 blocks of 3 LayerNorms, and 46 GroupNorms: the 256 of the paper.
    "sdxl": {"norms": 256, "attention": 140, "mlp": 70, "blocks": 70 + 17},
    "sd15": {"norms": 16 * 3 + 16 + 22 * 2 + 1, "attention": 32, "mlp": 16, "blocks": 16 + 22},
    # Of the last block the text stream ends before its second norm, attention output and MLP.
    "sd3": {"norms": 24 * 4 - 1, "attention": 24 * 2 - 1, "mlp": 24 * 2 - 1, "blocks": 24},
    "wan": {"norms": 30 * 3, "attention": 30 * 2, "mlp": 30, "blocks": 30},
    "flux": {"norms": 19 * 4 + 38, "attention": 19 * 2 + 38, "mlp": 19 * 2, "blocks": 19 + 38},
}


@pytest.fixture(scope="module")
def counts(host_python: Path) -> dict[str, dict[str, int]]:
    return json.loads(run_inside(host_python, "presets.py"))


@pytest.mark.parametrize("name", EXPECTED)
def test_presets_count_parts_of_full_models(counts: dict[str, dict[str, int]], name: str) -> None:
    assert counts[name] == EXPECTED[name]
