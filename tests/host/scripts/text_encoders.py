"""Run by the host's own Python: fits on all its text encoders, with tiny random weights, as JSON."""

from __future__ import annotations

import json
from typing import Any

from inside import ARGUMENTS

# isort: split
import torch
from act_pack import nodes
from act_pack.act_core import ActMap, fit
from act_pack.act_core.architectures.text_encoders import CLIP
from act_pack.act_core.errors import MapError
from act_pack.act_core.fitting import lockstep
from act_pack.nodes.host.text_encoders import TextEncoders, text_encoders
from encoder_zoo import ZOO, MissingError, built, patch_host

SOURCE = ["a cat", "a small red house"]
TARGET = ["a cat and black ink", "a small red house and very black ink"]
# Read by an encoder for the texts in a picture, too.
QUOTED = [f'a sign with "{prompt}"' for prompt in (*SOURCE, *TARGET)]

# Two have as many tokens; beside them, weights, and a prompt of several sections.
CAPTIONS = ["a cat", "a dog", "a (red:1.5) cat", "a red cat, " * 20]

# Of each kind, those that are fast enough here.
BATCHED = ("SD 1", "SDXL", "SD 3, T5", "Flux", "HunyuanImage", "Lumina 2", "Wan", "Qwen-Image", "Z-Image", "Lens")


def fitted(encoders: TextEncoders, source: list[str], target: list[str]) -> tuple[ActMap, dict[str, list[int]]]:
    """A map, and how many tokens were pooled for each prompt, by component."""
    counts: dict[str, list[int]] = {}
    pooled: list[int] = []
    pool = lockstep.pool

    def counting(x: torch.Tensor, layout: str, mask: torch.Tensor | None) -> torch.Tensor:
        pooled.extend([x.shape[1]] * len(x) if mask is None or layout != "tokens" else mask.sum(1).tolist())
        return pool(x, layout, mask)

    def progress(done: int, total: int, site: str) -> None:
        counts.setdefault(site.partition("/")[0], sorted(pooled))
        pooled.clear()

    lockstep.pool = counting
    try:
        return fit(encoders, source, target, sites="attention", progress=progress), counts
    finally:
        lockstep.pool = pool


def own_tokens(clip: Any, encoders: TextEncoders, prompts: list[str]) -> dict[str, dict[str, list[Any]]]:
    """What the masks select: texts and numbers of tokens for each prompt, by component."""
    found: dict[str, dict[str, list[Any]]] = {}
    for prompt in prompts:
        (batch,) = encoders.batches([prompt], 1)
        for encoder in encoders._encoders:
            name, key = encoder.component.name, encoder.key
            if name in batch.masks:
                ids = [token[0] for token in clip.tokenize(prompt)[key][0]]
                selected = [token for token, own in zip(ids, batch.masks[name][0], strict=True) if own]
                text = _tokenizer(clip.tokenizer, name, key).decode(selected)
                own = found.setdefault(name, {"texts": [], "counts": []})
                own["texts"].append(text.strip())
                own["counts"].append(len(selected))
    return found


def _tokenizer(tokenizer: Any, name: str, key: str) -> Any:
    names = (name, key, getattr(tokenizer, "clip", ""))
    found = next(getattr(tokenizer, name) for name in names if hasattr(tokenizer, name)).tokenizer
    return found if hasattr(found, "decode") else found.tokenizer  # SentencePiece in an older host


def encoded(clip: Any) -> list[torch.Tensor]:
    """All tensors in the conditioning of a prompt that no map was fitted on."""
    tokens = clip.tokenize(QUOTED[-1])
    if "lm_metadata" in tokens:
        tokens["lm_metadata"]["generate_audio_codes"] = False  # takes a minute
    return tensors(clip.encode_from_tokens_scheduled(tokens)[0])


def tensors(conditioning: Any) -> list[torch.Tensor]:
    values, extra = conditioning
    return [values, *(value for value in extra.values() if isinstance(value, torch.Tensor))]


def together(clip: Any) -> dict[str, Any]:
    """Captions that are encoded as one batch, against one after the other."""
    encoders = TextEncoders(clip)
    runs: list[torch.nn.Module] = []
    parts = text_encoders(clip).values()
    found: dict[str, list[torch.Tensor]] = {}
    counts: dict[str, int] = {}
    handles = [part.transformer.register_forward_pre_hook(lambda module, _: runs.append(module)) for part in parts]
    for name in ("encode", "encode_together"):
        found[name] = [value for one in getattr(encoders, name)(CAPTIONS) for value in tensors(one)]
        counts[name] = len(runs)
        runs.clear()
    for handle in handles:
        handle.remove()
    alone, batched = found.values()
    return {
        "shapes": [one.shape for one in alone] == [one.shape for one in batched],
        "difference": max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(alone, batched, strict=True)),
        "runs": counts,
        "left": [name for part in parts for name in ("encode", "forward") if name in vars(part)],
    }


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def moves(clip: Any, act_map: ActMap, before: list[torch.Tensor]) -> bool:
    steered = nodes.ApplyACTSteeringCLIP.execute(clip, act_map, 1.0).result[0]
    return not equal(encoded(steered), before)


def checked(clip: Any) -> dict[str, Any]:
    """What the test asserts about a CLIP."""
    before = encoded(clip)
    encoders = TextEncoders(clip)
    act_map, counts = fitted(encoders, SOURCE, TARGET)
    # The last layer of a CLIP model makes only its pooled output, which another encoder may provide.
    others = [part.name for part in encoders.components if part.architecture is not CLIP]
    last = {site.component: site.key for site in act_map.transports if site.component in others}
    return {
        "sites": {name: sum(site.component == name for site in act_map.transports) for name in act_map.components},
        "pooled": counts,
        "own": own_tokens(clip, encoders, [*SOURCE, *TARGET]),
        "notes": act_map.record.notes,
        "moves": moves(clip, act_map, before),
        "last sites that move": [name for name, key in last.items() if moves(clip, act_map.restrict(key), before)],
        "last sites": list(last),
        "restored": equal(encoded(clip), before),
    }


def quoted(clip: Any) -> dict[str, Any]:
    """A fit of prompts that all reach an encoder for quoted texts."""
    encoders = TextEncoders(clip)
    act_map, counts = fitted(encoders, QUOTED[:2], QUOTED[2:])
    return {"pooled": counts, "own": own_tokens(clip, encoders, QUOTED), "notes": act_map.record.notes}


def skipped(clip: Any) -> dict[str, int]:
    """Number of sites by component if CLIP Set Last Layer skips the last layer."""
    clip = clip.clone()
    clip.clip_layer(-2)
    act_map, _ = fitted(TextEncoders(clip), SOURCE, TARGET)
    return {name: sum(site.component == name for site in act_map.transports) for name in act_map.components}


def changed(clip: Any, key: str) -> dict[str, Any]:
    """A fit of a CLIP whose model passes on a copy of the tokens under a key."""
    run = clip.cond_stage_model.encode_token_weights
    clip.cond_stage_model.encode_token_weights = lambda tokens: run({**tokens, key: list(tokens[key])})
    try:
        act_map, _ = fitted(TextEncoders(clip), SOURCE, TARGET)
    except MapError as error:
        return {"refused": str(error)}
    return {"components": act_map.components, "notes": act_map.record.notes}


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)  # faster for tiny tensors
    patch_host()
    found: dict[str, Any] = {}
    for name in ARGUMENTS or ZOO:
        try:
            clip = built(name)
        except MissingError as error:
            found[name] = {"missing": str(error)}
            continue
        try:
            found[name] = checked(clip)
        except MapError as error:
            found[name] = {"refused": str(error)}
        if name in BATCHED:
            found[f"{name}, together"] = together(clip)
        if name == "HunyuanImage":
            found["HunyuanImage, quoted"] = quoted(clip)
        if name == "Flux":
            found["Flux, last layer skipped"] = skipped(clip)
            found["Flux, changed tokens"] = changed(clip, "t5xxl")
        if name == "SD 1":
            found["SD 1, changed tokens"] = changed(clip, "l")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
