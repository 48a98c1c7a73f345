"""The folders of maps, prompt sets and language models, beside ComfyUI's other model folders."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...act_core import MapError

PACK = Path(__file__).parents[2]
MAPS = "act_maps"
PROMPT_SETS = "act_prompt_sets"
# Other packs have language models there, too.
LANGUAGE_MODELS = "LLM"
_SHIPPED = {MAPS: PACK / "pretrained_maps", PROMPT_SETS: PACK / "prompt_sets"}
_SUFFIXES = {MAPS: {".safetensors"}, PROMPT_SETS: {".txt"}}


def register() -> None:
    """Tell ComfyUI of the folders; those that the user's own configuration names come first, the shipped ones last."""
    for kind, shipped in _SHIPPED.items():
        named = folder_paths.folder_names_and_paths.get(kind, ([], set()))[0]
        paths = [*named, str(Path(folder_paths.models_dir) / kind), str(shipped)]
        folder_paths.folder_names_and_paths[kind] = (list(dict.fromkeys(paths)), _SUFFIXES[kind])
    if LANGUAGE_MODELS not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(LANGUAGE_MODELS, str(Path(folder_paths.models_dir) / LANGUAGE_MODELS))


def names(kind: str) -> list[str]:
    """Files of a kind, as a combo lists them."""
    return folder_paths.get_filename_list(kind)


def find(kind: str, name: str) -> Path:
    """The file behind an entry of a combo."""
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        own = folder_paths.folder_names_and_paths[kind][0][0]
        raise MapError(f"There is no file {name} in {own}; put it there, or choose another.")
    return Path(path)


def language_models() -> list[str]:
    """Model folders and GGUF files, by their path inside a folder of language models."""
    found: set[str] = set()
    for folder in _language_folders():
        # Not the host's own listing, which knows files and no folders.
        configs = (path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
        # Neither does a pattern follow links to folders, on which many keep their models.
        walked = os.walk(folder, followlinks=True)
        files = (Path(place) / name for place, _, names in walked for name in names if name.endswith(".gguf"))
        found |= {path.relative_to(folder).as_posix() for path in (*configs, *files)}
    return sorted(found)


def find_language_model(name: str) -> Path:
    """The folder or file behind a name of `language_models`."""
    places = [folder / name for folder in _language_folders()]
    for place in places:
        if place.exists():
            return place
    raise MapError(f"There is no language model {name} in {places[0].parent}; put it there, or choose another.")


def _language_folders() -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(LANGUAGE_MODELS)]


def new_map(name: str) -> Path:
    """Where to save a map: in the user's first folder, under a name that is not taken.

    Raises:
        MapError: the name is empty, leads out of the folder, or cannot be that of a file.
    """
    folder = _own_maps()
    stem = name.strip().removesuffix(".safetensors")
    path = folder / f"{stem}.safetensors"
    if not stem or "\0" in stem or folder.resolve() not in path.resolve().parents:
        raise MapError(f"{name!r} is no name for a map; give a plain file name, such as ink.")
    number = 1
    try:
        while path.exists():
            number += 1
            path = folder / f"{stem}_{number:03}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MapError(f"{path} cannot be made: {error.strerror}; choose another name.") from error
    return path


def listed(path: Path) -> str:
    """A map that was saved, as the combo lists it."""
    return str(path.relative_to(_own_maps()))


def _own_maps() -> Path:
    return Path(folder_paths.folder_names_and_paths[MAPS][0][0])
