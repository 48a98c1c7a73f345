"""Maps on another model that a host builds from the same class."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import Chain
from steering_helpers import chain_map
from torch import nn

from act_core.architectures import architecture_of
from act_core.components import Component
from act_core.errors import MapMismatchError
from act_core.records import Fingerprint, FitRecord
from act_core.steering import check_variant


def check(fitted: tuple[str, ...], given: tuple[str, ...]) -> None:
    record = FitRecord(base={"toy": Fingerprint("Chain", "", "Chain", variants=fitted)})
    act_map = replace(chain_map(), record=record)
    check_variant(act_map.for_any_architecture(), component_of(Chain(), given))
    check_variant(act_map, component_of(Chain(), given))


def component_of(module: nn.Module, variants: tuple[str, ...] = ()) -> Component:
    return Component("toy", module, architecture_of(module), variants=variants)


def test_other_variant_is_refused_and_both_are_named() -> None:
    with pytest.raises(MapMismatchError, match=r"was fitted on Flux \(toy\), but this model is LongCatImage") as caught:
        check(("Flux",), ("LongCatImage",))
    assert "set allow_other_architecture on Load ACT Map" in str(caught.value)


def test_component_with_another_name_is_not_compared() -> None:
    record = FitRecord(base={"other": Fingerprint("Chain", "", "Chain", variants=("Flux",))})
    check_variant(replace(chain_map(), record=record), component_of(Chain(), ("LongCatImage",)))


RELATED = [
    (("Flux",), ("Flux",)),
    (("Flux",), ("FluxSchnell", "Flux")),
    (("FluxSchnell", "Flux"), ("Flux",)),
    (("WAN21_I2V", "WAN21_T2V"), ("WAN21_Vace", "WAN21_T2V")),
    ((), ("Flux",)),
    (("Flux",), ()),
]


@pytest.mark.parametrize(("fitted", "given"), RELATED)
def test_related_variants_are_allowed(fitted: tuple[str, ...], given: tuple[str, ...]) -> None:
    check(fitted, given)
