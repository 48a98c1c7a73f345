"""Steering a live model.

How maps are composed on a live module::

    steer() ── Steering            one map on one model; finds the modules of its sites
                  │ one each
                Layer              one map at one site, with its strength
                  │ several
                 Slot              all layers at one output of one module, composed into few Steps
                  │ one each
                 Step              one affine displacement, or one that depends on support, a gate or a projection
            SteeredForward         stands in for module.forward and sends its outputs through the slots

A gate reads the mean over the tokens that are not padding. Models of transformers get their attention mask in one
module (`act_core.interception.token_reader`). While a gated map acts, a SteeredForward there shows the mask to steps.

Strengths and coefficients are tensors that a graph reads at each call; composition happens outside the graph.

- `torch.compile`, also with ``mode="reduce-overhead"``: a new strength, noise level or map of the same kind needs no
  new graph. Switching to or from strength 0, where the graph is that of the unsteered model, makes at most one more.
- Captured CUDA graphs, which are replayed without running Python: the coefficients are updated in place, so a replay
  has the strength and the level of the moment, 0 included, whichever it was captured with. It follows a later block
  with another map of the same kind (support, gate, spatial rule), and outside all blocks it changes no finite value.
  For a map of another kind, which it cannot follow, a warning asks to capture it again. Rows are those of the capture.
  As usual, run the model before the capture. Replays are not counted as fires.
- Copies of a model on several devices are steered each by its own `steer`.
"""

from .forward import active_maps
from .matching import check_variant
from .rows import BatchRows
from .steer import Steering, steer

__all__ = ["BatchRows", "Steering", "active_maps", "check_variant", "steer"]
