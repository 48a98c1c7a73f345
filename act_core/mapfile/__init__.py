"""Map files: `format` defines their parts, `fields` checks values, `read` and `write` load and save them."""

from .read import load_map
from .write import save_map

__all__ = ["load_map", "save_map"]
