"""The folders of maps, prompt sets and language models, next to ComfyUI's other model folders."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import folder_paths

from ...act_core.errors import MapFileError
from ...act_core.image_files import is_picture
from ...act_core.text import is_unsafe

PACK = Path(__file__).parents[2]
MAPS = "act_maps"
LORAS = "loras"
PROMPT_SETS = "act_prompt_sets"
PICTURE_SETS = "act_picture_sets"
# The folder that other packs use too.
LANGUAGE_MODELS = "LLM"
_SHIPPED = {MAPS: PACK / "pretrained_maps", PROMPT_SETS: PACK / "prompt_sets"}
# The host lists files in subfolders, too. Those in this one are lists of captions, which have no sides.
_CAPTIONS = "captions"
# On Windows these words are devices, also in front of a suffix.
_DEVICE = re.compile(r"con|prn|aux|nul|(?:com|lpt)[0-9]", re.IGNORECASE)
_SUFFIXES = {MAPS: {".safetensors"}, PROMPT_SETS: {".txt"}}


def register() -> None:
    """Add the folders to ComfyUI's; those of the user's own configuration come first, the shipped ones last."""
    for kind, shipped in _SHIPPED.items():
        _add(kind, _default(kind), shipped)
        # If the user's configuration sets no suffixes, the host lists every file.
        folder_paths.folder_names_and_paths[kind] = (_paths(kind), _SUFFIXES[kind])
    _add(LANGUAGE_MODELS, _default(LANGUAGE_MODELS))


def _add(kind: str, *folders: Path) -> None:
    for folder in folders:
        folder_paths.add_model_folder_path(kind, str(folder))


def _default(kind: str) -> Path:
    return Path(folder_paths.models_dir) / kind


def _paths(kind: str) -> list[str]:
    return folder_paths.folder_names_and_paths[kind][0]


def names(kind: str) -> list[str]:
    """File names of a kind, as a combo lists them."""
    return folder_paths.get_filename_list(kind)


def prompt_sets() -> list[str]:
    """File names of prompt sets, as a combo lists them: without the lists in a folder ``captions``."""
    return [name for name in names(PROMPT_SETS) if Path(name).parts[0] != _CAPTIONS]


def find(kind: str, name: str) -> Path:
    """The file behind an entry of a combo.

    Raises:
        MapFileError: it does not exist.
    """
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise MapFileError(f"There is no file {name} in {_paths(kind)[0]}; put it there, or choose another one.")
    return Path(path)


def sha256(name: str, kind: str = MAPS) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        MapFileError: it does not exist.
    """
    return hashlib.sha256(find(kind, name).read_bytes()).hexdigest()


def fingerprint(kind: str, name: str | None) -> str:
    """Changes when a file does: a hash, since it may change twice within the resolution of its time stamp.

    Args:
        kind: of the file.
        name: its entry in a combo; None if the combo is connected, where the host compares what it is connected to.

    Raises:
        MapFileError: it does not exist.
    """
    return "" if name is None else sha256(name, kind)


def picture_sets() -> dict[str, Path]:
    """Folders of pictures by name: the user's own, those in the host's input folder, and those that ship."""
    found: dict[str, Path] = {}
    for root in (_default(PICTURE_SETS), Path(folder_paths.get_input_directory()), PACK / "picture_sets"):
        if root.is_dir():
            for folder in sorted(path for path in root.iterdir() if _is_picture_set(path)):
                found.setdefault(folder.name, folder)
    return found


def _is_picture_set(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    try:
        return any(is_picture(path) for path in folder.iterdir())
    except OSError:  # a folder that this user may not read
        return False


def find_picture_set(name: str) -> Path:
    """The folder behind a name of `picture_sets`.

    Raises:
        MapFileError: it does not exist.
    """
    folder = picture_sets().get(name)
    if folder is None:
        raise MapFileError(
            f"There is no folder of pictures {name} in {_default(PICTURE_SETS)}; put it there, or choose another one."
        )
    return folder


def language_models() -> list[str]:
    """Model folders and GGUF files, by their path inside a folder of language models."""
    found: set[str] = set()
    for folder in _language_folders():
        # Not with the host's own listing, which lists files but not folders.
        configs = (path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
        # A pattern does not follow links to folders, where many keep their models.
        walked = os.walk(folder, followlinks=True)
        files = (Path(place) / name for place, _, names in walked for name in names if name.endswith(".gguf"))
        found |= {path.relative_to(folder).as_posix() for path in (*configs, *files)}
    return sorted(found)


def find_language_model(name: str) -> Path:
    """The folder or file behind a name of `language_models`.

    Raises:
        MapFileError: it does not exist.
    """
    folders = _language_folders()
    # The host does not check a name that comes from another node, which could lead out of the folders.
    if name in language_models():
        return next(place for folder in folders if (place := folder / name).exists())
    raise MapFileError(f"There is no language model {name} in {folders[0]}; put it there, or choose another one.")


def _language_folders() -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(LANGUAGE_MODELS)]


def new_map(name: str) -> Path:
    """Where to save a map, see `_new_file`."""
    return _new_file(MAPS, name, "map")


def new_lora(name: str) -> Path:
    """Where to save a LoRA, see `_new_file`."""
    return _new_file(LORAS, name, "LoRA")


def _new_file(kind: str, name: str, what: str) -> Path:
    """Where to save a file: in the user's first folder, under a name that no file in any folder of its kind has.

    Args:
        kind: of the folder.
        name: a file name, with or without ``.safetensors``; subfolders are separated by slashes.
        what: what is saved, for errors.

    Raises:
        MapFileError: not a valid name for a file inside the folder.
    """
    parts = [part.strip() for part in name.strip().removesuffix(".safetensors").replace("\\", "/").split("/")]
    if not all(_is_file_name(part) for part in parts):
        raise MapFileError(f"{name!r} is not a name for a {what}; give a plain file name, such as ink or styles/ink.")
    *subfolders, stem = parts
    number = 1
    place = Path(*subfolders, f"{stem}.safetensors")
    try:
        while any(_exists(Path(folder) / place) for folder in _paths(kind)):
            number += 1
            place = Path(*subfolders, f"{stem}_{number:03}.safetensors")
        path = Path(_paths(kind)[0]) / place
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MapFileError(f"{name} cannot be saved: {error.strerror}. Choose another name.") from error
    return path


def listed_name(path: Path, kind: str = MAPS) -> str:
    """The name under which a file in the user's first folder of its kind is listed, and loaded."""
    return str(path.relative_to(_paths(kind)[0]))


def _is_file_name(part: str) -> bool:
    """Whether this names a file on every system: Windows drops dots at the end, and reserves characters and words."""
    forbidden = any(is_unsafe(character) or character in '\n\t<>:"|?*' for character in part)
    is_device = _DEVICE.fullmatch(part.partition(".")[0].strip()) is not None
    return bool(part) and not part.startswith(".") and not part.endswith(".") and not forbidden and not is_device


def _exists(path: Path) -> bool:
    """Whether there is a file of this name, including a dangling link.

    Raises:
        OSError: the name is too long, or a folder in it is a file.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
