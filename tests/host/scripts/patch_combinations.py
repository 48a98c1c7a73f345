"""Run by the host's own Python: maps beside what other packs do to a model, in every order. Prints JSON.

Each patch is made as the packs make it. Two that patch the layers of the map double their outputs, which is exact, so
that a model with doubled weights shows what the map should make of them.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.sample
import torch
from act_pack import nodes
from comfy.patcher_extension import PatcherInjection, WrappersMP
from torch import Tensor, nn

from tools.tiny_models import MODELS, StandInCLIP, built

TINY = MODELS["SD 1.5"]
LAYERS = "diffusion_model.middle_block.1.transformer_blocks.0"
# Layers of the map that are patched, in the diffusion model and in the text encoder.
PATCHED, INJECTED, WRAPPED = (f"{LAYERS}.{name}" for name in ("attn1.to_out.0", "ff.net.2", "attn2.to_out.0"))
TEXT = "clip_l.transformer.text_model.encoder.layers"
TEXT_PATCHED, TEXT_INJECTED = f"{TEXT}.0.mlp.fc2", f"{TEXT}.1.self_attn.out_proj"
OURS = "ours"
SOURCE, TARGET = "a cat\na house\na boat\na tree", "target cat\ntarget house\ntarget boat\ntarget tree"

Patch = Callable[[Any], Any]  # returns a clone with the patch
Order = tuple[str, ...]


def doubled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: 2 * forward(*args, **kwargs)


def attention(model: Any) -> Any:
    """Replaces an attention, as perturbed attention guidance does."""
    clone = model.clone()
    clone.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0)
    return clone


def object_patch(patcher: Any, layer: str) -> Any:
    patcher.add_object_patch(f"{layer}.forward", doubled(patcher.get_model_object(f"{layer}.forward")))
    return patcher


def function(model: Any) -> Any:
    clone = model.clone()
    clone.set_model_unet_function_wrapper(
        lambda apply, given: 0.9 * apply(given["input"], given["timestep"], **given["c"])
    )
    return clone


def injection(patcher: Any, layer: str) -> Any:
    """Swaps a forward while the model is loaded, as LoRAs in bypass mode do."""
    module = patcher.model.get_submodule(layer)
    before: list[Any] = []

    def inject(_: Any) -> None:
        if not before:
            before.append(module.forward)
            module.forward = doubled(module.forward)

    def eject(_: Any) -> None:
        if before:  # the host ejects twice where a clone is made of a loaded one
            module.forward = before.pop()

    patcher.set_injections("theirs", [PatcherInjection(inject, eject)])
    return patcher


def wrapper(model: Any) -> Any:
    """Swaps the forward of a layer around each call of the model."""

    def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
        module = executor.class_obj.get_submodule(WRAPPED)
        forward = module.forward
        module.forward = lambda *args, **kwargs: 0.5 * forward(*args, **kwargs) + 0.1
        try:
            return executor(*args, **kwargs)
        finally:
            module.forward = forward

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", call)
    return clone


def weights(patcher: Any, layer: str) -> Any:
    """Changes the weights of a layer, as a LoRA does."""
    weight = patcher.model.get_submodule(layer).weight
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) / 20
    assert patcher.add_patches({f"{layer}.weight": ("diff", (change,))}, 1.0)
    return patcher


def of_clip(patch: Callable[[Any, str], Any], layer: str) -> Patch:
    def patched(clip: Any) -> Any:
        clone = clip.clone()
        patch(clone.patcher, layer)
        return clone

    return patched


def encoding(clip: Any) -> Any:
    """Wraps the encoding of prompts."""
    clone = clip.clone()
    encode = clone.patcher.get_model_object("encode_token_weights")

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output, *rest = encode(*args, **kwargs)
        return (0.9 * output, *rest)

    clone.patcher.add_object_patch("encode_token_weights", scaled)
    return clone


class Trial:
    """A MODEL or CLIP, a map, patches of other packs, and what is drawn with them.

    Args:
        make: a new MODEL or CLIP; all have the same weights.
        draw: the result with one that is patched.
        patches: by name, those of others and ours.
        in_turn: patches of which the order among them matters, as they swap the same thing.
    """

    def __init__(
        self, make: Callable[[], Any], draw: Callable[[Any], Tensor], patches: dict[str, Patch], in_turn: set[str]
    ) -> None:
        self._make, self._draw, self._patches, self._in_turn = make, draw, patches, in_turn
        self._references: dict[tuple[frozenset[str], Order], Tensor] = {}
        self._used = self._last = make()

    def drawn(self, order: Sequence[str]) -> Tensor:
        """The result of these patches on the one model, on which those of the last result are still in place."""
        patched = self._used
        for name in order:
            if name == OURS:
                self._draw(patched)  # as a negative prompt does, which is not steered
            patched = self._patches[name](patched)
        result = self._draw(patched)
        self._last = patched
        return result

    def reference(self, order: Sequence[str]) -> Tensor:
        """The result of these patches on a new model, which only depends on the order of those that it should."""
        turns = tuple(name for name in order if name in self._in_turn)
        key = frozenset(order), turns
        if key not in self._references:
            rest = sorted(set(order) - self._in_turn)
            patched = self._make()
            for name in (*rest, *turns):
                patched = self._patches[name](patched)
            self._references[key] = self._draw(patched)
        return self._references[key]

    def failures(self, chains: Sequence[Order]) -> list[str]:
        """Draw each chain of patches, then take them away one by one, all on one model; returns what differed.

        The last patch of a chain mostly gives way to the next chain, as when a user swaps one node for another.
        """
        found: list[str] = []
        removals = random.Random(3)
        for number, chain in enumerate(chains):
            left = list(chain)
            for _ in range(len(chain) + (number % 4 == 0)):
                if not torch.equal(self.drawn(left), self.reference(left)):
                    found.append(f"{' '.join(left)} of {' '.join(chain)}")
                if left:
                    left.remove(removals.choice(left))
        return found

    def without_effect(self) -> list[str]:
        """Patches that change nothing beside all the others, whose chains would prove nothing."""
        names = list(self._patches)
        whole = self.reference(names)
        return [name for name in names if torch.equal(self.reference([n for n in names if n != name]), whole)]

    def chains(self) -> list[Order]:
        """Ours before and after each of the others, and somewhere among each two and a quarter of the threes."""
        others = [name for name in self._patches if name != OURS]
        rng = random.Random(4)
        threes = list(itertools.combinations(others, 3))
        chains: list[Order] = [chain for name in others for chain in ((name, OURS), (OURS, name))]
        for theirs in (*itertools.combinations(others, 2), *rng.sample(threes, len(threes) // 4)):
            chain = [OURS, *theirs]
            rng.shuffle(chain)
            chains.append(tuple(chain))
        rng.shuffle(chains)
        return chains

    def run(self) -> dict[str, Any]:
        chains = self.chains()
        return {"chains": len(chains), "failures": self.failures(chains), "without effect": self.without_effect()}


def conditioned() -> list[Any]:
    clip = StandInCLIP(TINY)
    return [clip.encode_from_tokens_scheduled({"text": text}) for text in ("a cat", "")]


def sampled(model: Any) -> Tensor:
    latent = torch.zeros(TINY.latent)
    noise = comfy.sample.prepare_noise(latent, 0)
    sampling = (noise, 1, 3.0, "euler", "simple", *conditioned(), latent)
    return comfy.sample.sample(model, *sampling, disable_pbar=True, seed=0)


def encoded(clip: Any) -> Tensor:
    return clip.encode_from_tokens(clip.tokenize("a cat on a mat"))


def loaded_clip() -> Any:
    return nodes.LoadACTDemoModel.execute().result[1]


def fitted(model: Any, clip: Any, components: str) -> Any:
    settings = ("attention, mlp", components, "linear", "causal", "unbounded", 4, 64, 64, 7)
    return nodes.FitACTMap.execute(model, clip, SOURCE, TARGET, *settings).result[0]


def double(root: nn.Module, *layers: str) -> None:
    for parameter in (parameter for layer in layers for parameter in root.get_submodule(layer).parameters()):
        parameter.data *= 2


def difference(one: Any, other: Any) -> float:
    return max(one.difference(other).values()) if set(one.transports) == set(other.transports) else float("inf")


@torch.inference_mode()
def main() -> None:
    act_map = fitted(built(TINY), StandInCLIP(TINY), "model")
    text_map = fitted(None, loaded_clip(), "text")

    def ours(model: Any, **flags: bool) -> Any:
        branch = "both" if flags else "positive"
        return nodes.ApplyACTSteering.execute(model, act_map, 0.8, 0.8, 0.0, 1.0, branch, **flags).result[0]

    def ours_on_clip(clip: Any) -> Any:
        return nodes.ApplyACTSteeringCLIP.execute(clip, text_map, 0.8).result[0]

    on_model: dict[str, Patch] = {
        OURS: ours,
        "attention": attention,
        "object": lambda model: object_patch(model.clone(), PATCHED),
        "function": function,
        "injection": lambda model: injection(model.clone(), INJECTED),
        "wrapper": wrapper,
        "weights": lambda model: weights(model.clone(), INJECTED),
    }
    on_clip: dict[str, Patch] = {
        OURS: ours_on_clip,
        "object": of_clip(object_patch, TEXT_PATCHED),
        "injection": of_clip(injection, TEXT_INJECTED),
        "encoding": encoding,
        "weights": of_clip(weights, TEXT_INJECTED),
    }
    make: Callable[[], Any] = lambda: built(TINY)  # noqa: E731
    as_weights = {name: on_model[name] for name in ("injection", "weights")} | {
        OURS: lambda model: ours(model, as_weights=True)
    }
    found: dict[str, Any] = {
        "model": Trial(make, sampled, on_model, {OURS, "wrapper"}).run(),
        "as weights": Trial(make, sampled, as_weights, {OURS, "weights"}).run(),
        "clip": Trial(loaded_clip, encoded, on_clip, {OURS, "object"}).run(),
    }

    # The map acts on what the patched layers return.
    model, clip = built(TINY), loaded_clip()
    double(model.model, PATCHED, INJECTED)
    double(clip.cond_stage_model, TEXT_PATCHED)
    patched = on_model["injection"](on_model["object"](built(TINY)))
    found["model beside doubled weights"] = torch.equal(sampled(ours(patched)), sampled(ours(model)))
    patched_clip = on_clip["object"](loaded_clip())
    found["clip beside doubled weights"] = torch.equal(encoded(ours_on_clip(patched_clip)), encoded(ours_on_clip(clip)))

    # And it is fitted on what they return.
    double(clip.cond_stage_model, TEXT_INJECTED)
    patched_clip = on_clip["injection"](patched_clip)
    stand_in = StandInCLIP(TINY)
    found["model fitted"] = difference(fitted(patched, stand_in, "model"), fitted(model, stand_in, "model"))
    found["clip fitted"] = difference(fitted(None, patched_clip, "text"), fitted(None, clip, "text"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
