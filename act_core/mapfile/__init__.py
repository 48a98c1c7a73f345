"""Map files: `format` names their parts, `fields` checks values, `read` and `write` do what they say."""

from .read import load_map
from .write import save_map

__all__ = ["load_map", "save_map"]
