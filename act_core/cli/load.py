"""Loads the model and the map of a command. A line is printed first, since importing a model library takes seconds."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import MapError

if TYPE_CHECKING:
    import torch

    from ..maps import ActMap
    from ..models.diffusers import DiffusersModel
    from ..models.transformers import TransformersModel
    from ..steering import Steering


def map_of(args: argparse.Namespace) -> ActMap:
    """The map of a command that has `arguments.add_permission`."""
    from ..mapfile import load_map

    act_map = load_map(args.map)
    return act_map.for_any_architecture() if args.allow_other_architecture else act_map


def print_remarks(steering: Steering) -> None:
    """Print the notes and warnings of a map on a model."""
    for note in steering.notes:
        print(note)
    for warning in steering.warnings:
        print(f"Warning: {warning}")


def is_pipeline(name: str) -> bool:
    """Whether this is the folder of a pipeline of diffusers.

    Example:
        >>> is_pipeline("nowhere")
        False
    """
    return (Path(name) / "model_index.json").is_file()


def any_model(args: argparse.Namespace, **settings: Any) -> TransformersModel | DiffusersModel:
    """The pipeline or language model of a command; the settings are those of a pipeline."""
    return pipeline(args, **settings) if is_pipeline(args.model) else language_model(args)


def language_model(args: argparse.Namespace) -> TransformersModel:
    """The language model named by ``--model``."""
    print("Loading the language model ...", flush=True)
    quiet_libraries("transformers")  # the import of diffusers takes as long as all others
    from ..models.transformers import TransformersModel

    placed = _placed(args)
    if args.model == "default":
        return TransformersModel.default(**placed)
    if _is_encoder_decoder(args.model):
        from ..models.encoder_decoder import EncoderDecoderModel

        return EncoderDecoderModel.from_pretrained(args.model, **placed)
    return TransformersModel.from_pretrained(args.model, **placed)


def pipeline(args: argparse.Namespace, **settings: Any) -> DiffusersModel:
    """The pipeline named by ``--model``."""
    print("Loading the pipeline ...", flush=True)
    quiet_libraries()
    from ..models.diffusers import DiffusersModel

    size = tuple(args.size) if args.size else None
    return DiffusersModel.from_pretrained(args.model, size=size, **_placed(args), **settings)


def quiet_libraries(*names: str) -> None:
    """Turn off progress bars and hints of libraries, if installed.

    This imports them first, because the import itself prints hints.

    Args:
        *names: of the libraries; transformers and diffusers by default.
    """
    for name in names or ("transformers", "diffusers"):
        if importlib.util.find_spec(name):
            logging: Any = importlib.import_module(f"{name}.utils.logging")
            logging.disable_progress_bar()
            logging.set_verbosity_error()


def _is_encoder_decoder(folder: str) -> bool:
    try:
        config = json.loads((Path(folder).expanduser() / "config.json").read_bytes())
    except (OSError, ValueError):  # loading it reports what is wrong
        return False
    return isinstance(config, dict) and bool(cast("dict[str, Any]", config).get("is_encoder_decoder"))


def _placed(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"dtype": getattr(torch, args.dtype), "device": _device(args.device)}


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise MapError(f"There is no device {name!r} here; try cpu.") from error
    if device.type == "meta":
        raise MapError("The device 'meta' holds no values; try cpu.")
    return device
