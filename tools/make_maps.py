"""Fits all maps of ``pretrained_maps`` again: the same bytes on the same machine.

    python -m tools.make_maps [--check]

Needs ComfyUI, see `tools.fit_demo_maps`. ``--check`` exits with status 1 if a file has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence

import torch

from . import fit_demo_maps, fit_text_maps
from .results import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_maps", description="Fit all shipped maps.")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a file has changed")
    args = parser.parse_args(arguments)
    # Sums in several threads round differently. For this process and for ComfyUI, which it starts.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    before = _hashes()
    fit_text_maps.main([])
    fit_demo_maps.main([])
    after = _hashes()
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    print(f"{len(after) - len(changed)} of {len(after)} maps are unchanged, bit for bit.")
    for name in changed:
        print(f"changed: {name}")
    return int(args.check and bool(changed))


def _hashes() -> dict[str, str]:
    files = sorted((ROOT / "pretrained_maps").glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    raise SystemExit(main())
