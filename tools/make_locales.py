"""Writes ``locales/en/nodeDefs.json``: what the nodes show, as ComfyUI's translations name it.

    python -m tools.make_locales

The other languages translate this file key by key; a test finds keys that are missing or stale. Needs ComfyUI at
``~/comfy/ComfyUI``, or at COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .comfyui.server import started
from .results import ROOT

LOCALES = ROOT / "locales"
CATEGORY = "ACT steering"

Definitions = dict[str, dict[str, Any]]


def english(listed: Mapping[str, Any]) -> Definitions:
    """The texts of our nodes, by node, from a host's ``/object_info``. Outputs with the name of their type keep it."""
    return {name: _node(info) for name, info in sorted(listed.items()) if info["category"] == CATEGORY}


def _node(info: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {
        name: _texts(options[1].get("display_name", name), options[1].get("tooltip"))
        for group in ("required", "optional")
        for name, options in info["input"].get(group, {}).items()
    }
    named = zip(info["output_name"], info["output_tooltips"], info["output"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": {str(at): _texts(name if name != kind else None, tip) for at, (name, tip, kind) in enumerate(named)},
    }


def _texts(name: str | None, tooltip: str | None) -> dict[str, str]:
    return {key: text for key, text in (("name", name), ("tooltip", tooltip)) if text}


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m tools.make_locales", description=__doc__).parse_args(arguments)
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    with tempfile.TemporaryDirectory() as base, started(root / ".venv" / "bin" / "python", Path(base)) as host:
        texts = english(host.get("/object_info"))
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
