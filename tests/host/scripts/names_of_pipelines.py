"""Run by the host's own Python: its names of the layers of diffusers' models. Prints JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.utils

UNET = {"model_channels": 320, "transformer_depth_middle": 1}
SD15 = UNET | {
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}
SDXL = UNET | {
    "num_res_blocks": [2] * 3,
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}


def names(table: Mapping[str, Any]) -> dict[str, str]:
    """The host's names of layers, by those in diffusers, without those that are parts of a fused layer."""
    kept = {theirs: ours for theirs, ours in table.items() if theirs.endswith(".weight") and isinstance(ours, str)}
    return {theirs.removesuffix(".weight"): ours.removesuffix(".weight") for theirs, ours in kept.items()}


def main() -> None:
    flux = {"depth": 2, "depth_single_blocks": 2, "hidden_size": 3072}
    tables = {
        "sd15": comfy.utils.unet_to_diffusers(SD15),
        "sdxl": comfy.utils.unet_to_diffusers(SDXL),
        "sd3": comfy.utils.mmdit_to_diffusers({"depth": 2, "num_blocks": 2}),
        "flux": comfy.utils.flux_to_diffusers(flux),
    }
    print(json.dumps({kind: names(table) for kind, table in tables.items()}))


if __name__ == "__main__":
    main()
