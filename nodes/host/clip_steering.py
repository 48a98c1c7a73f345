"""A map on the text encoders of a CLIP: object patches, which the host applies and removes."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any
from weakref import ref

import comfy.model_management
import comfy.utils
from torch import nn

from ...act_core import ActMap, steer
from ...act_core.components import DIFFUSION_MODEL
from ...act_core.interception import find_submodules
from ...act_core.settings import as_strength
from ...act_core.steering import Steering
from ...act_core.text import shorten
from .models import KEY, log_remarks
from .text_encoders import text_encoders

# The method of a CLIP's model that all encoding goes through.
_ENCODE = "encode_token_weights"


def steered_clip(clip: Any, act_map: ActMap, strength: float) -> tuple[Any, Steering]:
    """A clone of a CLIP whose text encoders are steered (at strength 0, the CLIP itself), and the applied map.

    Raises:
        MapError: no site of the map is in them, or the strength is not a number.
    """
    patterns = [f"{name}/*" for name in act_map.components if name != DIFFUSION_MODEL]
    act_map = act_map.restrict(*patterns) if patterns else act_map
    strength = as_strength(strength)
    # Also at strength 0: a map for another model is refused at any strength.
    roots = {name: part.transformer for name, part in text_encoders(clip).items()}
    steering = steer(roots, act_map, strength)
    log_remarks(steering)
    if not strength:
        return clip, steering
    clone = clip.clone()
    patcher = clone.patcher

    def before(component: str, site: str) -> Callable[..., Any]:
        return _callable_at(patcher, _path(component, roots[component], site))

    with _without_injections(patcher):
        for (component, site), forward in steering.forwards(before).items():
            patcher.add_object_patch(_path(component, roots[component], site), forward)
        patcher.add_object_patch(_ENCODE, _reporting(_callable_at(patcher, _ENCODE), steering))
    patcher.set_attachments(KEY, True)
    return clone, steering


@contextmanager
def _without_injections(patcher: Any) -> Generator[None, None, None]:
    """Take injections off while forwards are read: those of LoRAs in bypass mode, if the loaded clone has some.

    The host puts the injections of a clone over its object patches. One that is part of a patch, too, would act twice,
    or in a clone that does not have it.
    """
    with ExitStack() as stack:
        for loaded in comfy.model_management.current_loaded_models:
            if loaded.model is not None and patcher.is_clone(loaded.model):
                stack.enter_context(loaded.model.use_ejected())
        yield


def _path(component: str, root: nn.Module, site: str) -> str:
    """Path to the forward of a submodule of a text encoder, from the root of the CLIP's model."""
    module = find_submodules(root, [site])[site]
    name = next(name for name, other in root.named_modules() if other is module)  # may differ from that in the map
    return f"{component}.transformer.{name}.forward"


def _reporting(encode: Callable[..., Any], steering: Steering) -> Callable[..., Any]:
    """Wrap the encoding of a prompt to log how many sites fired."""

    def encode_and_report(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        steering.check()
        title = shorten(steering.act_map.card.title, 60) or "map"
        logging.info("ACT Steering: %s: %s.", title, steering.coverage)
        return output

    return encode_and_report


class _WeakMethod:
    """A bound method of a module that does not keep the module alive."""

    def __init__(self, method: MethodType) -> None:
        self._function: Callable[..., Any] = method.__func__
        self._owner = ref(method.__self__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self._owner(), *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _WeakMethod:
        return _WeakMethod(MethodType(self._function, copy.deepcopy(self._owner(), memo)))


def _callable_at(patcher: Any, path: str) -> Callable[..., Any]:
    """The callable that an object patch at `path` wraps: an earlier patch, or the model's own method.

    The host leaves the method that it patched as an attribute of its own module: a reference cycle, which keeps an
    unused model in memory. So the method is replaced by one that refers to the module weakly.
    """
    current = patcher.get_model_object(path)
    if not inspect.ismethod(current) or not isinstance(current.__self__, nn.Module):
        return current
    weak = _WeakMethod(current)
    if path in patcher.object_patches:
        return weak
    if path in patcher.object_patches_backup:  # it is patched at this moment, by another clone
        patcher.object_patches_backup[path] = weak
    else:
        comfy.utils.set_attr(patcher.model, path, weak)
    return weak
