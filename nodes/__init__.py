"""The nodes: schemas, tooltips, progress and errors. What they know of ComfyUI's inside is in `host`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyACTSteering, ApplyACTSteeringCLIP, CreateACTHook
from .demo import LoadACTDemoModel
from .files import LoadACTMap, SaveACTMap
from .fit import FitACTMap
from .host import folders
from .look import EditACTMap, InspectACTMap
from .prompts import ACTPromptSet
from .sweep import ACTStrengthSweep
from .text import ACTSteeredText, FitACTTextMap, LoadACTLanguageModel

NODES: list[type[io.ComfyNode]] = [
    ACTPromptSet,
    FitACTMap,
    SaveACTMap,
    LoadACTMap,
    ApplyACTSteering,
    ApplyACTSteeringCLIP,
    CreateACTHook,
    ACTStrengthSweep,
    InspectACTMap,
    EditACTMap,
    LoadACTDemoModel,
    LoadACTLanguageModel,
    FitACTTextMap,
    ACTSteeredText,
]


class ACTSteeringExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Not in `on_load`, which the oldest host we support does not call.
        folders.register()
        return NODES
