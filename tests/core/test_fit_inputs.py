"""The input that a fit accepts, and that it refuses before the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Chain, assert_identical, chain, prompts

from act_core import MapError, fit, load_map, save_map
from act_core.components import Component
from act_core.errors import FitError
from act_core.fitting import FitModel, MicroBatch
from act_core.settings import FitSettings, RefineSettings
from act_core.text import plain_text

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


@pytest.mark.parametrize("name", ["estimator", "order", "support", "interval", "moved", "spatial"])
def test_fit_lists_choices_for_an_unknown_word(name: str) -> None:
    settings: dict[str, Any] = {name: "sideways"}
    with pytest.raises(MapError, match=rf"{name} is 'sideways'; choose one of \w+, \w+"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, **settings)


@pytest.mark.parametrize("size", [0, -3])
def test_fit_refuses_batch_size_below_one(size: int) -> None:
    with pytest.raises(MapError, match=f"batch_size is {size}; it must be a whole number, at least 1"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=size)


def test_fit_names_closest_sites_for_a_misspelt_pattern() -> None:
    with pytest.raises(MapError, match=r"closest names are toy/layers\.\*"):
        fit(chain(), SOURCE, TARGET, sites="toy/layer.1")


# --- prompts


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "There are no prompts on the {side} side"),
        (["one"], "There is 1 prompt on the {side} side"),
        (["one", ""], "{Side} prompt 2 is empty"),
        ([" \n", "one"], "{Side} prompt 1 is empty"),
        (["one", "\u3164"], "{Side} prompt 2 is empty"),
        (["one", None], "{Side} prompt 2 is None; every prompt must be a text"),
        ([float("nan"), "one"], "{Side} prompt 1 is nan; every prompt must be a text"),
        (["one", "\ud800"], r"{Side} prompt 2 contains U\+D800"),
        ("one prompt", "The {side} prompts are one text"),
        (None, "The {side} prompts are None; give a list"),
        (3, "The {side} prompts are 3; give a list"),
    ],
)
def test_fit_refuses_bad_prompts(side: str, bad: Any, reason: str) -> None:
    sides: dict[str, Any] = {"source": SOURCE, "target": TARGET, side: bad}
    with pytest.raises(MapError, match=reason.format(side=side, Side=side.capitalize())):
        fit(chain(), **sides, sites=LAYERS)


def test_fit_refuses_identical_sides_in_any_order() -> None:
    with pytest.raises(MapError, match="are the same"):
        fit(chain(), SOURCE, SOURCE[::-1], sites=LAYERS)


def test_fit_accepts_repeated_prompts_and_unequal_numbers() -> None:
    assert len(fit(chain(), [*SOURCE, SOURCE[0]], TARGET[:2], sites=LAYERS)) == 3


def test_fit_accepts_generators_and_arrays_of_prompts() -> None:
    listed = fit(chain(), SOURCE, TARGET, sites=LAYERS)
    assert_identical(fit(chain(), (text for text in SOURCE), np.array(TARGET), sites=LAYERS), listed)


@pytest.mark.parametrize("seed", [np.int64(7), torch.tensor(7), np.uint8(7)])
def test_fit_accepts_whole_numbers_of_numpy_and_torch(seed: Any, tmp_path: Path) -> None:
    act_map = fit(chain(), SOURCE, TARGET, sites=LAYERS, seed=seed, batch_size=np.int32(3))
    assert load_map(save_map(act_map, tmp_path / "map.safetensors")).record.seed == 7


@pytest.mark.parametrize("half", [np.float32(0.5), torch.tensor(0.5)])
def test_settings_accept_numbers_of_numpy_and_torch(half: Any) -> None:
    refined = RefineSettings(rate=half, held_back=half)
    found = refined.rate, refined.held_back, FitSettings(estimator="end_to_end", sparsity=half).sparsity
    assert [(type(number), number) for number in found] == [(float, 0.5)] * 3


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1", None])
def test_fit_refuses_other_seeds(seed: Any) -> None:
    with pytest.raises(FitError, match=r"seed is .*; it must be a whole number, from 0 to"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, seed=seed)


@pytest.mark.parametrize("part", ["\x92", "\x1b[31m", "\x00", "\r", "\r\n", "\u2028", "é", "\U0001f600"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_map_of_any_prompt_can_be_saved(side: str, part: str, tmp_path: Path) -> None:
    sides: dict[str, Any] = {"source": SOURCE, "target": TARGET}
    sides[side] = [f"one{part}two{part}", *sides[side]]
    act_map = fit(chain(), **sides, sites=LAYERS)
    record = load_map(save_map(act_map, tmp_path / "map.safetensors")).record
    assert record == act_map.record
    assert getattr(record, f"{side}_prompts")[0] == plain_text(f"one{part}two{part}")


def test_map_with_notes_and_patches_of_any_text_can_be_saved(tmp_path: Path) -> None:
    model = chain()
    model.notes, model.patches = ["a\x1bnote"], ["a\x00patch"]
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    record = load_map(save_map(act_map, tmp_path / "map.safetensors")).record
    assert (record.notes, record.patches) == (("a\ufffdnote",), ("a\ufffdpatch",))


def test_fit_refuses_a_bare_module() -> None:
    with pytest.raises(FitError, match=r"The model is a Chain; give an adapter"):
        fit(Chain(), SOURCE, TARGET)  # pyright: ignore[reportArgumentType]


def test_fit_refuses_an_unknown_setting() -> None:
    with pytest.raises(FitError, match=r"no setting 'site'; choose from batch_size, estimator, "):
        fit(chain(), SOURCE, TARGET, site="norms")


def test_adapter_needs_only_components_and_batches() -> None:
    inner = chain()

    class Adapter(FitModel[str]):
        @property
        def components(self) -> list[Component]:
            return inner.components

        def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
            return inner.batches(samples, size)

    assert len(fit(Adapter(), SOURCE, TARGET, sites=LAYERS)) == 3


# --- weights that are not in memory


def test_fit_refuses_weights_on_the_meta_device_before_the_model_runs() -> None:
    model, ran = chain(), []
    model.module.get_submodule("layers.1").to("meta")
    model.on_run = ran.append
    with pytest.raises(FitError, match=r"weights of toy are not loaded \(layers\.1\.weight is on the meta device\)"):
        fit(model, SOURCE, TARGET, sites=LAYERS)
    assert not ran


@pytest.mark.parametrize("batch_size", [2, 32])
def test_fit_of_offloaded_weights_gives_the_same_map(batch_size: int, tmp_path: Path) -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    plain = fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=batch_size)
    model = chain()
    accelerate.cpu_offload(model.module, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.module.parameters())
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=batch_size)
    assert_identical(act_map, plain)
    assert act_map.record.base == plain.record.base
    save_map(act_map, tmp_path / "map.safetensors")
