"""Loads a language model and its tokenizer from a folder or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers

from ..errors import MapError
from .gguf import unpacked
from .kinds import LOCAL_ONLY
from .loading import loading

_DTYPE = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"


def load_pretrained(
    path: str | os.PathLike[str],
    auto_class: Any,
    check: Callable[[str, Any], None],
    advice: str,
    dtype: torch.dtype,
    device: str | torch.device,
) -> tuple[Any, Any, str]:
    """The model, its tokenizer and its display name. Nothing is ever downloaded.

    Args:
        path: a model folder, or a GGUF file, which is dequantised once into the user's cache.
        auto_class: of transformers, such as ``AutoModelForCausalLM``.
        check: takes the display name and the configuration, and refuses other kinds of models before weights are read.
        advice: what to do if loading fails.
        dtype, device: of the weights.

    Raises:
        MapError: the path does not exist, or is not a model that can be loaded.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise MapError(f"There is no model at {path}; give a model folder or a GGUF file.")
    with loading(path, advice):
        folder = unpacked(path) if path.suffix == ".gguf" else path
        if not (folder / "config.json").is_file():
            raise MapError(f"{folder} is not a model folder: config.json is missing. Give the folder that has it.")
        check(path.name, transformers.AutoConfig.from_pretrained(folder, **LOCAL_ONLY))
        # Loaded in the dtype rather than cast to it: a cast would also round the frequencies of rotary embeddings.
        module: Any = auto_class.from_pretrained(folder, **{_DTYPE: dtype}, **LOCAL_ONLY)
        tokenizer = cast("Any", transformers.AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY))
        module = module.to(device).eval()
    return module, tokenizer, path.stem if path.suffix == ".gguf" else path.name
