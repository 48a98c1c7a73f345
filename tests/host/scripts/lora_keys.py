"""Run by the host's own Python: which keys of exported LoRAs its loader has no place for. Prints JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import inside

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


def read(names: Mapping[str, Any], prefix: str) -> set[str]:
    """The keys that the host makes of the names that diffusers has."""
    spelled = {name.removesuffix(".weight") for name in names}
    return {prefix + (name.replace(".", "_") if prefix.endswith("_") else name) for name in spelled}


def main() -> None:
    known = {
        "sd15": read(comfy.utils.unet_to_diffusers(SD15), "lora_unet_"),
        "sdxl": read(comfy.utils.unet_to_diffusers(SDXL), "lora_unet_"),
        "sd3": read(comfy.utils.mmdit_to_diffusers({"depth": 2, "num_blocks": 2}), "transformer."),
        "flux": read(
            comfy.utils.flux_to_diffusers({"depth": 2, "depth_single_blocks": 2, "hidden_size": 3072}), "transformer."
        ),
    }
    keys = json.loads(Path(inside.ARGUMENTS[0]).read_text())
    print(json.dumps({kind: sorted(set(keys[kind]) - known[kind]) for kind in keys}))


if __name__ == "__main__":
    main()
