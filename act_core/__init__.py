"""Activation Transport: fit, keep and apply maps that steer generative models.

Names are imported when they are first used, so that ``act-steering --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["ActMap", "MapError", "calibrate", "fit", "load_map", "save_map", "steer"]

if TYPE_CHECKING:
    from .calibrating import calibrate
    from .errors import MapError
    from .fitting import fit
    from .mapfile import load_map, save_map
    from .maps import ActMap
    from .steering import steer
else:
    _MODULES = {
        "ActMap": "maps",
        "MapError": "errors",
        "calibrate": "calibrating",
        "fit": "fitting",
        "load_map": "mapfile",
        "save_map": "mapfile",
        "steer": "steering",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
