"""Activation Transport: fit, keep and apply maps that steer generative models."""

from .errors import MapError
from .fitting import fit
from .mapfile import load_map, save_map
from .maps import ActMap
from .steering import steer

__all__ = ["ActMap", "MapError", "fit", "load_map", "save_map", "steer"]
