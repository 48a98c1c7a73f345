"""Run by the host's own Python: the text that `act_core` writes without nodes, as JSON."""

from __future__ import annotations

import json
from typing import Any

import inside

# isort: split
import comfy.utils
import torch
from act_pack import nodes
from act_pack.act_core import load_map, steer
from act_pack.act_core.models.transformers import Chat, TransformersModel
from act_pack.nodes.host.language import LanguageModel


def main() -> None:
    folder, act_map, prompt, instruction, length = inside.ARGUMENTS
    model = TransformersModel.from_pretrained(folder)
    settings: dict[str, Any] = {"max_new_tokens": int(length), "repetition_penalty": 1.1, "seed": 3}
    written = {
        "continue": lambda: prompt + model.generate([prompt], **settings)[0],
        "chat": lambda: model.in_chat(Chat(user=instruction)).generate([prompt], **settings)[0].strip(),
    }
    texts = {f"{mode} unsteered": write() for mode, write in written.items()}
    with steer(model.module, load_map(act_map), 1.0):
        texts |= {mode: write() for mode, write in written.items()}
    reported: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: reported.append((value, total)))
    inputs = ("continue", 5, 0.8, 0.95, 1.1, 3, True)
    given = LanguageModel(model, torch.device("cpu"))
    nodes.ACTSteeredText.execute(given, prompt, "", 1.0, *inputs, load_map(act_map))
    print(json.dumps({**texts, "progress": reported}))


if __name__ == "__main__":
    main()
