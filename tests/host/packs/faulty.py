"""A pack for tests, which the host loads: layers and nodes that fail, and a disk that is full or hangs."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import torch
from aiohttp import web
from server import PromptServer

routes: Any = PromptServer.instance.routes
FAULTS = ("error", "out of memory", "nan")


class _Disk:
    """What happens when a file is flushed to disk: ``well``, ``full`` or ``hung``."""

    fsync = staticmethod(os.fsync)
    state = "well"
    hangs = threading.Event()

    @classmethod
    def flush(cls, file: Any) -> None:
        if cls.state == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if cls.state == "hung":
            cls.hangs.set()
            threading.Event().wait()
        cls.fsync(file)


os.fsync = _Disk.flush


async def set_disk(request: web.Request) -> web.Response:
    _Disk.state = (await request.json())["state"]
    return web.json_response()


async def disk_hangs(request: web.Request) -> web.Response:
    return web.json_response(_Disk.hangs.is_set())


class FaultyLayer:
    """A MODEL or CLIP with a layer that fails at one of its calls, or at all of them if the number is 0."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (the host's name)
        own = {"layer": ("STRING", {}), "fault": (FAULTS,), "call": ("INT", {"default": 1})}
        return {"required": own, "optional": {"model": ("MODEL",), "clip": ("CLIP",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP"), "run", "test"

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")  # never taken from the cache, or the count would go on

    def run(self, layer: str, fault: str, call: int, model: Any = None, clip: Any = None) -> tuple[Any, Any]:
        model, clip = model and model.clone(), clip and clip.clone()
        for patcher in (model, clip and clip.patcher):
            if patcher is not None:
                path = f"{layer}.forward"
                patcher.add_object_patch(path, _failing(patcher.get_model_object(path), fault, call))
        return model, clip


def _failing(forward: Any, fault: str, call: int) -> Any:
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        output = forward(*args, **kwargs)
        if call not in (0, calls):
            return output
        if fault == "out of memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if fault == "error":
            raise ValueError("the layer failed")
        return torch.full_like(output, float("nan"))

    return failing


class FaultyNode:
    """A node that fails, whatever it is given."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"given": ("*",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    def run(self, given: Any) -> None:
        raise ValueError("the node failed")


routes.post("/test/disk")(set_disk)
routes.get("/test/disk")(disk_hangs)
NODE_CLASS_MAPPINGS = {"FaultyLayer": FaultyLayer, "FaultyNode": FaultyNode}
