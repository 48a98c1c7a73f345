"""Map files."""

from .format import load_map, save_map

__all__ = ["load_map", "save_map"]
