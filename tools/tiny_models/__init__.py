"""The host's own model classes at sizes at which they run in milliseconds, with random weights.

Imported by scripts that the host's own Python runs. `model` builds one; the other files hold the sizes.
"""

from __future__ import annotations

from .audio import AUDIO
from .flux import FLUX
from .model import StandInCLIP, Tiny, built, conditioning, empty_latent
from .stills import STILLS
from .unets import UNETS
from .videos import VIDEOS

MODELS = {**UNETS, **FLUX, **STILLS, **VIDEOS, **AUDIO}

__all__ = ["MODELS", "StandInCLIP", "Tiny", "built", "conditioning", "empty_latent"]
