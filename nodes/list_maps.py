"""List ACT Maps: what each map in the folders is, before one is loaded."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..act_core.errors import MapFileError
from ..act_core.mapfile import ListedMap, list_map, table_of
from ..act_core.text import plain_text
from .common import CATEGORY, aliases, one_text
from .host import folders


class ListACTMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ListACTMaps",
            display_name="List ACT Maps",
            category=CATEGORY,
            **aliases("browse maps", "map library", "installed maps"),
            description="Lists all maps in models/act_maps and those that ship with the pack: model, effect, "
            "recommended strength, size and hash. No map is loaded for it.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "contains",
                    default="",
                    tooltip="Lists only maps with this text in their file name, title, model or tags; empty lists all.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="A line for each map.")],
        )

    @classmethod
    def fingerprint_inputs(cls, contains: str | None) -> str:
        return _report(contains or "")  # connected: all maps count

    @classmethod
    def execute(cls, contains: str) -> io.NodeOutput:
        report = _report(one_text(contains, "input contains", "List ACT Maps"))
        return io.NodeOutput(report, ui={"text": (report,)})


def _report(contains: str) -> str:
    found = [_listed(name) for name in folders.names(folders.MAPS)]
    return table_of([listed for listed in found if listed.mentions(contains)])


def _listed(name: str) -> ListedMap:
    try:
        return list_map(folders.find(folders.MAPS, name), name)
    except MapFileError as error:  # the host lists links that lead nowhere, but does not find them
        return ListedMap(Path(name), plain_text(name), 0, None, str(error))
