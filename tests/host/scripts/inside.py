"""Imported by scripts that the host's own Python runs: makes the host's modules and ``act_pack`` importable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACK, HOST = Path(__file__).resolve().parents[3], Path(sys.argv[1])
ARGUMENTS = sys.argv[2:]
sys.path.insert(0, str(HOST))
# After the host, which has a module called nodes, too.
sys.path.append(str(PACK))
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

# As the host imports a pack: under a separate name.
spec = importlib.util.spec_from_file_location("act_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
assert spec is not None
assert spec.loader is not None
pack = sys.modules["act_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
