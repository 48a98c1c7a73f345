"""``act-steering fit-all``: a map of each look and each removal among the prompt sets, for one pipeline"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import shipped
from ..errors import MapError
from ..prompts import PromptSet, load_prompt_set
from ..settings import FitSettings
from .arguments import Commands, add_command, add_device, add_size, bytes_of_mebibytes, check_writable
from .fit import add_components, add_settings
from .load import pipeline

if TYPE_CHECKING:
    from ..models.diffusers import DiffusersModel

# Settings for the prompt sets whose names begin with these words; others are not about pictures. Removal by gated
# projection leaves the least of the thing and the most of other prompts (benchmarks/removal.py).
_SETTINGS: dict[str, dict[str, Any]] = {
    "look_": {"support": "unbounded"},
    "remove_": {"estimator": "project", "support": "gated"},
}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "fit-all",
        _run,
        "Fit a map from each prompt set of a look or a removal, for one pipeline. Run again to go on after a stop.",
        "--model my_pipeline --out my_maps",
    )
    parser.add_argument("--model", required=True, help="pipeline folder of the diffusers library")
    add_device(parser)
    add_size(parser)
    add_components(parser)
    parser.add_argument(
        "--prompt-sets",
        type=Path,
        default=shipped("prompt_sets"),
        help="folder of prompt sets named look_*.txt and remove_*.txt (those that ship with the pack)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the maps, each named as its prompt set; created if missing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace maps that exist instead of skipping them")
    add_settings(parser, "sites", "batch_size", "memory_budget", "seed")


def _run(args: argparse.Namespace) -> None:
    out: Path = args.out
    prompt_sets = _prompt_sets(args.prompt_sets)
    settings = {name: _settings(name, args) for name in prompt_sets}
    out.mkdir(exist_ok=True)
    maps = {name: out / f"{name}.safetensors" for name in prompt_sets}
    for path in maps.values():
        check_writable(path)
    existing = {name for name, path in maps.items() if path.exists() and not args.overwrite}
    model = None
    for number, (name, prompts) in enumerate(prompt_sets.items(), 1):
        label = f"[{number}/{len(prompt_sets)}] {name}"
        if name in existing:
            print(f"{label}: {maps[name]} exists, skipped")
            continue
        model = model or pipeline(args, components=args.components, seed=args.seed)
        print(f"{label}: {_fit(model, name, prompts, settings[name], maps[name])}", flush=True)
    print(f"{out}: Fitted {len(prompt_sets) - len(existing)}, skipped {len(existing)} that exist.")


def _prompt_sets(folder: Path) -> dict[str, PromptSet]:
    """The prompt sets in a folder that have settings here, by name."""
    if not folder.is_dir():
        raise MapError(f"{folder} is not a folder; name one that has prompt sets.")
    paths = sorted(path for kind in _SETTINGS for path in folder.glob(f"{kind}*.txt"))
    if not paths:
        raise MapError(f"{folder} has no prompt sets for pictures; they are named look_*.txt or remove_*.txt.")
    return {path.stem: load_prompt_set(path) for path in paths}


def _settings(name: str, args: argparse.Namespace) -> FitSettings:
    """The settings for a prompt set."""
    own = next(settings for kind, settings in _SETTINGS.items() if name.startswith(kind))
    memory = bytes_of_mebibytes(args.memory)
    return FitSettings(sites=args.sites, batch_size=args.batch_size, memory_budget=memory, seed=args.seed, **own)


def _fit(model: DiffusersModel, name: str, prompts: PromptSet, settings: FitSettings, path: Path) -> str:
    """Fit and save one map; returns what was saved, for the line of progress."""
    from ..mapfile import save_map
    from ..progress import fit_with_bar

    try:
        act_map = fit_with_bar(model, prompts, settings)
    except MapError as error:
        raise MapError(f"{name}.txt could not be fitted: {error}") from error
    save_map(act_map, path, title=name.removeprefix("look_").replace("_", " "))
    notes = "".join(f"; {note}" for note in act_map.record.notes)
    return f"{len(act_map)} sites, {path.stat().st_size / 1e6:.2f} MB{notes}"
