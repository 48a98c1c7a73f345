"""Steering a live model.

How maps are composed on a live module::

    steer() ── Steering            one map on one model; finds the modules of its sites
                  │ one each
                Layer              one map at one site, with its strength
                  │ several
                 Slot              all layers at one output of one module, composed into few Steps
                  │ one an output
            SteeredForward         stands in for module.forward and sends its outputs through the slots

Strengths and coefficients are tensors that a compiled graph reads at each call; composition happens outside the graph.
"""

from .forward import active_maps
from .matching import check_variant
from .rows import BatchRows
from .steer import Steering, steer

__all__ = ["BatchRows", "Steering", "active_maps", "check_variant", "steer"]
