"""What kind of part a site is: from the presets of its architecture, or from its name where there are none."""

from __future__ import annotations

import re
from typing import Literal

from ..sites import Site, matches
from . import ARCHITECTURES

Kind = Literal["norm", "attention", "mlp", "block", "output"]

# The more specific first: the last norm of a text encoder is its output, too.
_PRESETS: dict[str, Kind] = {
    "output": "output",
    "norms": "norm",
    "attention": "attention",
    "mlp": "mlp",
    "blocks": "block",
}
# In the last parts of names.
_NAMES: dict[str, Kind] = {
    r"norm|(^|\.)ln_?\d*$": "norm",
    r"attn|attention|(^|\.)(o|out)_proj$": "attention",
    r"mlp|(^|\.)ff|feed_?forward|expert|moe|fc\d$": "mlp",
    r"(^|\.)\d+$": "block",
}


def kind_of(site: Site, architecture: str) -> Kind:
    """The kind of a site.

    Args:
        site: of a map.
        architecture: name of the record of its component, or of a model without one.

    Example:
        >>> kind_of(Site("model", "model.layers.3.mlp.down_proj", None, "tokens", 4), "llama")
        'mlp'
        >>> kind_of(Site("model", "decoder.5", None, "tokens", 4), "unknown")
        'block'
    """
    record = next((known for known in ARCHITECTURES if architecture in known.kinds), None)
    key = site.key.partition("/")[2]
    for preset, kind in _PRESETS.items():
        if record is not None and matches(record.patterns(preset), key):
            return kind
    within = re.split(r"\.\d+\.", site.name)[-1]
    for pattern, kind in _NAMES.items():
        if re.search(pattern, within):
            return kind
    return "output"
