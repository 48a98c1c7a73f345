"""ACT Steering for ComfyUI: fit, share and apply Activation Transport maps in the graph."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension that provides the nodes to ComfyUI."""
    from .nodes import ACTSteeringExtension

    return ACTSteeringExtension()
