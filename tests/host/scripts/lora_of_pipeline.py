"""Run by the host's own Python: a LoRA of a pipeline in the host's model of the same weights.

Arguments: the folder of `other_library.py`, a family, the LoRA, and where to save what the model returns.
"""

from __future__ import annotations

from functools import partial

import inside

# isort: split
import comfy.lora
import torch
from host_models import FAMILIES
from other_library import FOLDER
from raw_models import RawModel
from safetensors.torch import load_file, save_file

from act_core.components import DIFFUSION_MODEL


def main(name: str, lora: str, out: str) -> None:
    given = load_file(FOLDER / f"{name}.safetensors")
    component, build, run = FAMILIES[name]
    starts = "weights.", "inputs."
    weights, inputs = ({key[len(s) :]: tensor for key, tensor in given.items() if key.startswith(s)} for s in starts)
    module, converted = build(weights)
    module.load_state_dict(converted)
    module.eval().requires_grad_(False)
    parameters = module.state_dict()
    # The host's loader knows each layer by its whole name.
    prefix = DIFFUSION_MODEL if component == DIFFUSION_MODEL else f"text_encoders.{component}.transformer"
    keys = {f"{prefix}.{key.removesuffix('.weight')}": key for key in parameters if key.endswith(".weight")}
    patches = comfy.lora.load_lora(tensors := load_file(lora), keys)
    assert len(patches) >= len({key.rpartition(".")[0] for key in tensors})
    for key, patch in patches.items():
        parameters[key] = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], parameters[key].clone(), key)
    module.load_state_dict(parameters)
    save_file({"drawn": RawModel(component, module, partial(run, module), inputs).drawn()}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)  # faster for tiny tensors
    main(*inside.ARGUMENTS[1:])
