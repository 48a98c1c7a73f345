"""Fitting a map.

`fit`: settings and samples in, a map out. `lockstep`: the walk in which all samples pass the sites together.
`samples`: what is asked of a model. `pooling`: what is kept of activations. `memory` and `groups`: how many samples
fit, and what happens with the rest.
"""

from .fit import Progress, fit
from .samples import FitModel, MicroBatch

__all__ = ["FitModel", "MicroBatch", "Progress", "fit"]
