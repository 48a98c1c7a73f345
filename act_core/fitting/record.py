"""The part of a map's record that is known before the fit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from ..components import Component
from ..fingerprints import fingerprint
from ..records import FitRecord
from ..settings import FitMethod
from ..steering import active_maps
from ..text import plain_text
from .samples import FitModel, Sample

_VERSIONED = ("torch", "transformers", "diffusers")


def record_of(
    model: FitModel[Sample],
    method: FitMethod,
    components: Sequence[Component],
    source: Sequence[Sample],
    target: Sequence[Sample],
) -> FitRecord:
    """The part of a map's record that is known before the fit, with texts as a file can keep them."""
    described = ([model.describe(sample) for sample in side] for side in (source, target))
    patches = (*model.patches, *(title for c in components for title in active_maps(c.module)))
    return FitRecord(
        **{f.name: getattr(method, f.name) for f in fields(FitMethod)},
        **prompts_recorded(*described),
        base={component.name: fingerprint(component) for component in components},
        versions={name: _version(name) for name in _VERSIONED if name in sys.modules},
        patches=tuple(plain_text(patch) for patch in patches),
        notes=tuple(plain_text(note) for note in model.notes),
    )


def prompts_recorded(source: Sequence[str], target: Sequence[str]) -> dict[str, Any]:
    """The fields of a `FitRecord` that name the prompts of a fit.

    Example:
        >>> prompts_recorded(["a cat", "a dog"], ["a cat, ink"])["source_count"]
        2
    """
    described = [list(source), list(target)]
    prompts = [tuple(plain_text(text) for text in side) for side in described]
    return {
        "source_prompts": prompts[0],
        "target_prompts": prompts[1],
        "source_count": len(source),
        "target_count": len(target),
        "prompts_sha256": hashlib.sha256(json.dumps(described).encode()).hexdigest(),
    }


@cache
def _version(library: str) -> str:
    return importlib.metadata.version(library)
