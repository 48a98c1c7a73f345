"""Fits a map.

`fit`: settings and samples in, a map out. `pictures`: the same at several noise levels. `refine`: follows a gradient
instead. `lockstep`: the walk in which all samples pass the sites together. `samples`: the interface of a model.
`pooling`: reduces activations to pooled values. `memory` and `room`: how many samples fit into memory. `parking`: where
those wait that do not. `groups`: how samples are streamed that cannot be parked either. `gather`: several processes
that fit one map.
"""

from .fit import Progress, fit
from .pictures import LevelModel, fit_pictures
from .refine import refine
from .samples import FitModel, LossModel, MicroBatch

__all__ = ["FitModel", "LevelModel", "LossModel", "MicroBatch", "Progress", "fit", "fit_pictures", "refine"]
