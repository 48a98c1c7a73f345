"""The translations of the nodes in a running ComfyUI."""

from __future__ import annotations

import json

import pytest

from tools.comfyui.server import Host
from tools.make_locales import LOCALES, english


def test_english_texts_are_those_that_the_nodes_show(host: Host) -> None:
    saved = json.loads((LOCALES / "en" / "nodeDefs.json").read_text("utf-8"))
    assert saved == english(host.get("/object_info")), "run 'python -m tools.make_locales', then translate what changed"


@pytest.mark.parametrize("version", ["host", "oldest"])
def test_host_serves_every_language(version: str, request: pytest.FixtureRequest) -> None:
    served = request.getfixturevalue(version).get("/i18n")
    for folder in LOCALES.iterdir():
        ours = json.loads((folder / "nodeDefs.json").read_text("utf-8"))
        assert {name: served[folder.name]["nodeDefs"][name] for name in ours} == ours
