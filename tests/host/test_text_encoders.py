"""Fits on every text encoder of the host, in its own classes with tiny random weights."""

from __future__ import annotations

from typing import Any

import pytest
from in_host import ResultsOf

PROMPTS = ["a cat", "a small red house", "a cat and black ink", "a small red house and very black ink"]
# Attentions up to the last layer that becomes the conditioning; 4 layers unless noted.
SITES = {
    "SD 1": {"clip_l": 4},
    "SD 2": {"clip_h": 4},
    "SDXL": {"clip_l": 4, "clip_g": 4},
    "SDXL refiner": {"clip_g": 4},
    "Stable Cascade": {"clip_g": 4},
    "SD 3, CLIP": {"clip_l": 4, "clip_g": 4},
    "SD 3, T5": {"t5xxl": 4},
    "Stable Audio": {"t5base": 4},
    "Stable Audio 3": {"t5gemma": 4},
    "AuraFlow": {"pile_t5xl": 4},
    "HunyuanDiT": {"hydit_clip": 4, "mt5xl": 4},
    "Flux": {"t5xxl": 4, "clip_l": 4},
    "Flux.2": {"mistral3_24b": 30},  # of 40
    "Flux.2 Klein": {"qwen3_4b": 27},  # of 36
    "Mochi": {"t5xxl": 4},
    "LTXV": {"t5xxl": 4},
    "LTX-2": {"gemma3_12b": 4},
    "LTX-2, Gemma 4": {"gemma3_12b": 4},
    "HunyuanVideo": {"llama": 2, "clip_l": 4},
    "HunyuanImage": {"qwen25_7b": 2},
    "HunyuanVideo 1.5": {"qwen25_7b": 2},
    "PixArt, Chroma": {"t5xxl": 4},
    "Cosmos": {"t5xxl": 4},
    "CogVideoX": {"t5xxl": 4},
    "Lumina 2": {"gemma2_2b": 3},
    "Gemma 3": {"gemma3_4b": 3},
    "PixelDiT": {"gemma2_2b": 4},
    "Wan": {"umt5xxl": 4},
    "HiDream": {"clip_l": 4, "clip_g": 4, "t5xxl": 4, "llama": 4},
    "ACE-Step": {"umt5base": 4},
    "ACE-Step 1.5": {"qwen3_06b": 4},
    "OmniGen 2": {"qwen25_3b": 4},
    "Qwen-Image": {"qwen25_7b": 4},
    "LongCat-Image": {"qwen25_7b": 4},
    "Ovis": {"qwen3_2b": 4},
    "Kandinsky 5": {"qwen25_7b": 4, "clip_l": 4},
    "Z-Image": {"qwen3_4b": 3},
    "NewBie": {"gemma": 3, "jina": 4},
    "Jina CLIP": {"jina_clip_2": 4},
    "Anima": {"qwen3_06b": 4},
    "Ernie": {"ministral3_3b": 3},
    "Ideogram 4": {"qwen3vl_8b": 36},  # of 36
    "Qwen3-VL": {"qwen3vl_8b": 4},
    "Boogu": {"qwen3vl_8b": 4},
    "Krea 2": {"qwen3vl_4b": 35},  # of 36
    "JoyImage": {"qwen3vl_8b": 4},
    "Mage-Flow": {"qwen3vl_4b": 4},
    "MiniMax H3": {"qwen3vl_32b": 4},
    "Qwen3.5": {"qwen35_2b": 3},
    "Gemma 4": {"gemma4": 4},
    "Gemma 4 31B": {"gemma4": 4},
    "Lens": {"gpt_oss": 3},
    "SAM 3": {"sam3_clip": 4},
}
# CLIP models that the host runs and returns without a mask, in which all tokens count.
READ_WITH_PADDING = {"clip_l", "clip_g", "clip_h"}
UNUSED, UNKNOWN = "some prompts do not use it", "the tokens of a trial prompt did not reach it unchanged"
LEFT_OUT = {
    "HunyuanImage": ("byt5_small", UNUSED),
    "HunyuanVideo 1.5": ("byt5_small", UNUSED),
    "ACE-Step 1.5": ("qwen3_2b", UNKNOWN),
}


@pytest.fixture(scope="module")
def everything(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("text_encoders.py")


@pytest.fixture
def found(everything: dict[str, Any], name: str) -> dict[str, Any]:
    if "missing" in everything[name]:
        pytest.skip(f"this ComfyUI does not have the text encoder of {name}: {everything[name]['missing']}")
    return everything[name]


def check_pooled(found: dict[str, Any], texts: dict[str, list[str]], whole: set[str]) -> None:
    """Exactly the tokens of the prompts are pooled, counted in each fit."""
    assert {name: own["texts"] for name, own in found["own"].items()} == texts
    assert found["pooled"].keys() - found["own"].keys() <= whole
    for name, counts in found["pooled"].items():
        assert counts == sorted(found["own"][name]["counts"]) if name in found["own"] else [77] * 4


@pytest.mark.parametrize("name", SITES)
def test_fit_pools_tokens_of_prompts_alone(name: str, found: dict[str, Any]) -> None:
    whole = set() if name == "Stable Cascade" else READ_WITH_PADDING
    check_pooled(found, {part: PROMPTS for part in SITES[name] if part not in whole}, whole)


@pytest.mark.parametrize("name", SITES)
def test_fit_finds_layers_that_conditioning_depends_on(name: str, found: dict[str, Any]) -> None:
    assert found["sites"] == SITES[name]
    assert found["last sites that move"] == found["last sites"]


@pytest.mark.parametrize("name", SITES)
def test_map_moves_conditioning_and_is_removed(name: str, found: dict[str, Any]) -> None:
    assert found["moves"]
    assert found["restored"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_encoder_that_prompts_do_not_reach_is_left_out(name: str, found: dict[str, Any]) -> None:
    encoder, reason = LEFT_OUT[name]
    assert found["notes"] == [f"{encoder} left out, because {reason}"]


def test_encoder_whose_tokens_are_not_recognised_is_left_out(everything: dict[str, Any]) -> None:
    assert everything["Flux, changed tokens"] == {
        "components": ["clip_l"],
        "notes": [f"t5xxl left out, because {UNKNOWN}"],
    }


def test_fit_is_refused_if_no_encoder_is_left(everything: dict[str, Any]) -> None:
    assert everything["SD 1, changed tokens"]["refused"] == (
        f"No text encoder of this CLIP can be fitted (clip_l left out, because {UNKNOWN}); set components to model."
    )


@pytest.mark.parametrize("name", ["HunyuanImage, quoted"])
def test_encoder_of_quoted_texts_is_fitted_if_all_prompts_use_it(name: str, everything: dict[str, Any]) -> None:
    if name not in everything:
        pytest.skip("this ComfyUI does not have the text encoder of HunyuanImage")
    quoted = [f'a sign with "{prompt}"' for prompt in PROMPTS]
    check_pooled(everything[name], {"qwen25_7b": quoted, "byt5_small": PROMPTS}, set())
    assert everything[name]["notes"] == []


def test_layers_that_are_skipped_are_sites_only_of_clip(everything: dict[str, Any]) -> None:
    # The pooled output of CLIP still comes from its last layer.
    assert everything["Flux, last layer skipped"] == {"clip_l": 4, "t5xxl": 3}


@pytest.mark.parametrize(
    "name", ["SD 1", "SDXL", "SD 3, T5", "Flux", "HunyuanImage", "Lumina 2", "Wan", "Qwen-Image", "Z-Image"]
)
def test_captions_encoded_together_are_as_alone(name: str, everything: dict[str, Any]) -> None:
    """To rounding: a batch is multiplied in another order."""
    found = everything[f"{name}, together"]
    assert found["shapes"]
    assert found["difference"] < 1e-5
    assert found["runs"]["encode_together"] < found["runs"]["encode"]
    assert found["left"] == []


def test_encoder_that_runs_in_its_own_way_is_left_to_the_host(everything: dict[str, Any]) -> None:
    if "Lens, together" not in everything:
        pytest.skip("this ComfyUI does not have the text encoder of Lens")
    found = everything["Lens, together"]
    assert found["difference"] == 0
    assert found["runs"]["encode_together"] == found["runs"]["encode"]
