"""The core in the host's environment, on the host's own model classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_host import run_inside


@pytest.fixture(scope="module")
def unet(host_python: Path) -> dict[str, Any]:
    return json.loads(run_inside(host_python, "unet.py"))


def test_fit_covers_feature_maps_and_tokens(unet: dict[str, Any]) -> None:
    assert unet["layouts"] == ["spatial", "tokens"]
    assert unet["fired"] == len(unet["sites"]) > 20


def test_walk_follows_execution_order(unet: dict[str, Any]) -> None:
    def first(prefix: str) -> int:
        return next(i for i, name in enumerate(unet["sites"]) if name.startswith(prefix))

    assert first("input_blocks.1.0.") < first("input_blocks.1.1.") < first("middle_block.") < first("output_blocks.0.")


def test_lockstep_equals_rerunning(unet: dict[str, Any]) -> None:
    assert unet["difference"] == 0  # the same batches and the same arithmetic, so no tolerance


def test_steering_leaves_nothing_behind(unet: dict[str, Any]) -> None:
    assert unet["strength 0 is exact"]
    assert unet["after is exact"]
    assert unet["moved"] > 1e-3
    assert unet["left behind"] == 0
