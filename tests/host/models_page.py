"""Writes docs/models.md from what the host's models and text encoders did: ``python tests/host/models_page.py``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "core"), str(Path(__file__).parent)]

from between_hosts import carried, exchanged  # noqa: E402
from in_host import run_inside  # noqa: E402
from language_models import BY_RECORD, BY_RULE  # noqa: E402
from other_pipelines import OTHER_PIPELINES  # noqa: E402
from pipelines import PIPELINES  # noqa: E402

TEXT = """\
# Models

What a map can be fitted on, and what was tried. Every model here is tiny and has random weights: no published
checkpoint was tested. `python tests/host/models_page.py` writes this page, and a test compares it with what ComfyUI
0.33.0 does.

The layers that a map steers (sites) come from a table for the models that have one. In all others they are found by
rule, from the structure of the model and one run of two prompts, which the report of Fit ACT Map shows. Its input
`pattern` takes layers of your own choice instead.

## Models in ComfyUI

Each was fitted with Fit ACT Map (`sites` auto, `components` model), steered with Apply ACT Steering under guidance, and
restored. Strength 0 gave the unsteered result and the negative branch stayed as it was, bit for bit; afterwards the
weights were identical.

Where prompts of different lengths share a stream with the picture, text and picture tokens are pooled and steered apart
(*apart*); each part counts as a site. The number of sites is that of the tiny model.

{models}

{notes}

Not fitted:

{refused}

### At full size

Sites of each preset, the size of a map with `auto`, and the memory that ComfyUI estimates for 32 + 32 prompts of 1024 x
1024 pixels at once, in float16 and without the weights. Where that is more than 30% of the free memory, the fit runs
with a budget of 70% of it and parks the prompts that wait in main memory. Counted on the meta device, so no weights
were needed.

{sizes}

`width` and `height` 0 select the usual size of a model. Models whose latents have frames are fitted on a single frame
unless you connect a latent. Audio models need a latent.

## Text encoders in ComfyUI

The number of sites for `attention`. Most of these encoders have 4 layers here, that of Flux.2 has 40, and those of
Flux.2 Klein, Ideogram 4 and Krea 2 have 36. Layers after the last one that is used are not sites. Only the prompt's own
tokens are pooled, not padding or templates; CLIP encoders that the diffusion model reads with their padding are pooled
whole.

{encoders}

## Pipelines in diffusers

Fitted, steered and restored: {pipelines}. Any other text-to-image pipeline is run by its signature.

## Maps between diffusers and ComfyUI

A map fitted in one of the two steers the same model in the other. The file stays as it is: its sites are translated
when the map is applied, and the report lists those that do not carry over, because the other library does not compute
the same tensor. With equal weights and inputs, the steered results agree to float32 rounding. The numbers are sites of
a map with `all` sites of a tiny model; text encoders are those of transformers.

{between}

Only parts with the same tensor in both are translated. In SD3, Flux and Z-Image, for example, ComfyUI computes queries,
keys and values at once, so sites there do not carry over. Whether the weights are those of the fit is not compared for
a translated map. Flux.2, Lumina 2, and the variants of Wan that are classes of their own in diffusers are not
translated.

Text encoders have the names `clip_l`, `clip_g`, `t5xxl` and `umt5xxl` in both. Others, such as `qwen3` and `qwen3_4b`,
are matched if a single one is of the same family and has all the sites. So a map of a language model that was fitted in
transformers, from a folder or a GGUF file (`language_model`), also steers that model as a text encoder in ComfyUI.

## Language models in transformers

Sites from a table: {by_record}.

Sites by rule: {by_rule}.
"""
NOTES = {"HiDream-I1": "its experts compute both branches at once, so the negative branch may change by rounding"}


SCRIPTS = "every_model.py", "text_encoders.py", "real_sizes.py"
HEADER = "model", "class", "sites from", "sites", "layouts", "text and picture"
BETWEEN = "model", "to ComfyUI", "not in ComfyUI", "to diffusers", "not in diffusers"
PRESETS = "norms", "attention", "mlp", "blocks", "auto"


def page(
    models: Mapping[str, Any],
    encoders: Mapping[str, Any],
    sizes: Mapping[str, Any],
    between: Mapping[str, tuple[str, ...]],
) -> str:
    """The text of the page, from what `SCRIPTS` print, and what carries over between the libraries."""
    fitted = {name: found for name, found in models.items() if "error" not in found}
    rows = [
        (
            name,
            f"`{m['class']}`",
            "rule" if m["by rule"] else "table",
            str(m["sites"]),
            " and ".join(m["layouts"]),
            "apart" if m["segments"] else "",
        )
        for name, m in fitted.items()
    ]
    texts = [
        (name, ", ".join(f"`{part}` {count}" for part, count in e["sites"].items()), "; ".join(e["notes"]))
        for name, e in encoders.items()
        if "sites" in e
    ]
    counts = [
        (name, *(str(s["sites"][p]) for p in PRESETS), f"{s['map'] / 1e6:.1f} MB", f"{s['memory'] / 1e9:.0f} GB")
        for name, s in sizes.items()
    ]
    return TEXT.format(
        models=_table(HEADER, rows),
        notes="\n".join(f"{name}: {note}." for name, note in NOTES.items()),
        refused="\n".join(f"- {name}: {m['error']}" for name, m in models.items() if "error" in m),
        sizes=_table(("model", *PRESETS, "map", "memory of the host's estimate"), counts),
        encoders=_table(("text encoders of", "sites", "notes"), texts),
        between=_table(BETWEEN, [(name, *cells) for name, cells in between.items()]),
        pipelines=", ".join([*PIPELINES, *OTHER_PIPELINES]),
        by_record=", ".join(BY_RECORD),
        by_rule=", ".join(BY_RULE),
    )


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    host = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    python = host / ".venv" / "bin" / "python"
    found = [json.loads(run_inside(python, script)) for script in SCRIPTS]
    with tempfile.TemporaryDirectory() as folder:
        exchange = exchanged(python, Path(folder) / "exchange")
        between = {name: carried(exchange, name) for name in exchange.report}
    PAGE.write_text(page(*found, between=between), "utf-8")
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
