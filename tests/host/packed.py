"""What the Comfy registry ships of the pack: tracked files that ``.comfyignore`` does not name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tools.comfyui.server import PACK


def _listed(*options: str) -> set[str]:
    run = subprocess.run(["git", "ls-files", "-z", *options], cwd=PACK, capture_output=True, text=True, check=True)
    return {name for name in run.stdout.split("\0") if name}


def shipped_files() -> set[str]:
    """By the rules of ``.gitignore``, which those of ``.comfyignore`` are, too."""
    return _listed("--cached") - _listed("--cached", "--ignored", "--exclude-from=.comfyignore")


def copy_shipped(folder: Path) -> None:
    """Copy them into a new folder."""
    for name in sorted(shipped_files()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACK / name, folder / name)
