"""The nodes: schemas, tooltips and errors. Everything that depends on ComfyUI's internals is in `host`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyACTSteering, ApplyACTSteeringCLIP
from .blend import BlendACTMaps
from .calibrate import CalibrateACTMap
from .compare import CompareACTMaps
from .demo import LoadACTDemoModel
from .edit import EditACTMap
from .export import ExportACTMapAsLoRA
from .fit_images import FitACTMapFromImages
from .fit_map import FitACTMap
from .hook import CreateACTHook
from .host import folders
from .inspect import InspectACTMap
from .language_model import LoadACTLanguageModel
from .list_maps import ListACTMaps
from .loader import ACTMapLoader
from .map_files import LoadACTMap, SaveACTMap
from .picture_set import ACTPictureSet
from .probe import ProbeACTMap
from .prompt_set import ACTPromptSet
from .stack import ACTMapStack
from .sweep import ACTStrengthSweep
from .text import ACTSteeredText, FitACTTextMap

NODES: list[type[io.ComfyNode]] = [
    ACTPromptSet,
    FitACTMap,
    FitACTMapFromImages,
    SaveACTMap,
    LoadACTMap,
    ACTMapLoader,
    ApplyACTSteering,
    ApplyACTSteeringCLIP,
    CreateACTHook,
    ACTStrengthSweep,
    CalibrateACTMap,
    InspectACTMap,
    EditACTMap,
    LoadACTDemoModel,
    LoadACTLanguageModel,
    FitACTTextMap,
    ACTSteeredText,
    ACTMapStack,
    ProbeACTMap,
    ACTPictureSet,
    ListACTMaps,
    ExportACTMapAsLoRA,
    CompareACTMaps,
    BlendACTMaps,
]


class ACTSteeringExtension(ComfyExtension):
    """The extension that gives ComfyUI the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Not in `on_load`, which the oldest supported host does not call.
        folders.register()
        return NODES
