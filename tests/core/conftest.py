"""Fixtures of several test files."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import MIXED_SITES, mixed, prompts

from act_core import ActMap, fit


@pytest.fixture(scope="session")
def fitted() -> ActMap:
    """A map with sites of every layout and observed support."""
    return fit(mixed(), prompts("source", 6), prompts("target", 5), sites=MIXED_SITES, support="observed", seed=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a map can be saved."""
    return tmp_path / "calm.safetensors"
