"""ComfyUI in this process: its modules, and the pack as ComfyUI imports it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .models import ROOT

PACK = "act_pack"

_START = """
import asyncio, importlib.util, os, sys, time
root, pack = sys.argv[1:]
sys.path.insert(0, root)
sys.argv[1:] = ["--cpu"]
os.chdir(root)
import comfy.options
comfy.options.enable_args_parsing()
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
start = time.perf_counter()
init = os.path.join(pack, "__init__.py")
spec = importlib.util.spec_from_file_location("act_pack", init, submodule_search_locations=[pack])
module = sys.modules["act_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def schemas():
    for node in await (await module.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()
asyncio.run(schemas())
print(time.perf_counter() - start)
"""


def seconds_of_import(host: Path) -> float:
    """Startup time that the pack adds after the host's own nodes are imported; in a fresh process."""
    command = [sys.executable, "-c", _START, host, ROOT]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def version(host: Path) -> str:
    """Of ComfyUI."""
    return next(iter((host / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1:]), "")


def load_pack(host: Path) -> Any:
    """Import the pack as ComfyUI does, and return its module of nodes."""
    sys.path.insert(0, str(host))
    sys.argv[1:] = ["--cpu"]
    os.chdir(host)
    import comfy.options

    comfy.options.enable_args_parsing()
    init = ROOT / "__init__.py"
    spec = importlib.util.spec_from_file_location(PACK, init, submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    pack = sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    nodes = pack_module("nodes")
    nodes.folders.register()
    return nodes


def pack_module(name: str) -> ModuleType | Any:
    """A module of the pack, by its dotted name inside it."""
    return importlib.import_module(f"{PACK}.{name}")
