"""Map files: `format` defines their parts, `fields` checks values, `header`, `read` and `write` load and save them.

`listing` shows what is in a folder of maps, and `sidecars` writes what model managers read beside a map.
"""

from .listing import ListedMap, list_map, list_maps, table_of
from .read import load_map
from .sidecars import write_sidecars
from .write import save_map

__all__ = ["ListedMap", "list_map", "list_maps", "load_map", "save_map", "table_of", "write_sidecars"]
