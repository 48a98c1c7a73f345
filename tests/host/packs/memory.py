"""A pack for tests, which the host loads: shows what its process holds, and when it has freed it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from server import PromptServer

PACK = "act-steering"
routes: Any = PromptServer.instance.routes


async def freed(request: web.Request) -> web.Response:
    # Right after a run the host does not listen, and would free its memory only seconds later.
    queue = PromptServer.instance.prompt_queue
    while queue.flags:
        with queue.not_empty:
            queue.not_empty.notify()
        await asyncio.sleep(0.05)
    return web.json_response(True)


async def bytes_of_tensors(request: web.Request) -> web.Response:
    # Looking at all objects keeps them alive for a moment: the host's own collection, which runs once, may meet it.
    gc.collect()
    return web.json_response(_bytes(gc.get_objects()))


async def threads(request: web.Request) -> web.Response:
    return web.json_response(_threads())


async def census(request: web.Request) -> web.Response:
    """Threads, objects and memory of the process; those of the pack's own classes by class."""
    gc.collect()
    objects = gc.get_objects()
    kinds = [type(thing) for thing in objects]
    ours = [kind for kind in kinds if PACK in str(kind.__module__)]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {
        "threads": _threads(),
        "ours": Counter(f"{kind.__module__}.{kind.__qualname__}".partition(f"{PACK}.")[2] for kind in ours),
        "objects": len(objects),
        "tensors": _bytes(objects),
        "resident": pages * 4096,
    }
    return web.json_response(found)


def _threads() -> Counter[str]:
    """How many there are, by name without its number."""
    return Counter(thread.name.rstrip("0123456789") for thread in threading.enumerate())


def _bytes(objects: Iterable[Any]) -> int:
    tensors = [thing for thing in objects if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    # Several tensors may share a storage.
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


routes.get("/test/freed")(freed)
routes.get("/test/bytes_of_tensors")(bytes_of_tensors)
routes.get("/test/threads")(threads)
routes.get("/test/census")(census)
NODE_CLASS_MAPPINGS = {}
