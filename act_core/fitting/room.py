"""How much memory beside the model's device there is for micro-batches that wait."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Set
from pathlib import Path

import torch

# Types of devices whose storages can be parked.
PARKED_DEVICES = frozenset({"cpu", "cuda"})


def room_to_park(devices: Set[str]) -> int:
    """Bytes that micro-batches may park while they wait, see `act_core.fitting.parking`.

    Half of the available main memory, so that the rest of the system is not pushed out of it.

    Args:
        devices: types of the devices where the model makes its tensors.
    """
    hides_tensors = "torch._dynamo" in sys.modules and not hasattr(torch.compiler, "set_stance")
    if devices - PARKED_DEVICES or hides_tensors:
        return 0
    room = available_memory() // 2
    if "cpu" in devices:
        room = min(room, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    return room


def available_memory() -> int:
    """Main memory that is free or can be freed without swapping; 0 if that is unknown."""
    info = Path("/proc/meminfo")
    if info.exists():
        available = re.search(r"MemAvailable: +(\d+) kB", info.read_text(encoding="ascii"))
        return int(min(int(available[1]) * 1024 if available else 0, _left_of_container()))
    if importlib.util.find_spec("psutil"):  # ComfyUI and accelerate bring it
        return importlib.import_module("psutil").virtual_memory().available
    return 0


def _left_of_container() -> float:
    """What the limit of this process's container leaves; infinite if there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        cached = re.search(r"inactive_file (\d+)", (folder / "memory.stat").read_text(encoding="ascii"))
    except OSError:
        return math.inf
    return math.inf if limit == "max" else max(0, int(limit) - used + int(cached[1] if cached else 0))
