"""The demonstration: fits, saves and loads maps, and steers real models with them."""

from pathlib import Path


def shipped(name: str) -> Path:
    """A folder that ships with the project: next to the package in a checkout, inside it when installed.

    Example:
        >>> shipped("prompt_sets").name
        'prompt_sets'
    """
    inside = Path(__file__).parent.parent / name
    return inside if inside.is_dir() else inside.parent.parent / name
