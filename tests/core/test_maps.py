"""The map: looking up, composing, inverting, scaling, restricting, comparing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import MIXED_SITES, assert_identical, keys, largest_difference, mixed, prompts

from act_core import ActMap, MapError, fit
from act_core.records import Card, Fingerprint, FitRecord
from act_core.sites import Site, matches
from act_core.transport import Transport


def site(name: str, channels: int = 2, component: str = "toy", output: int | None = None) -> Site:
    return Site(component, name, output, "tokens", channels)


def affine(omega: float, beta: float, channels: int = 2) -> Transport:
    return Transport(torch.full((channels,), omega), torch.full((channels,), beta))


def act_map(**transports: Transport) -> ActMap:
    return ActMap({site(name): t for name, t in transports.items()})


@pytest.fixture
def fitted() -> ActMap:
    return fit(mixed(), prompts("source", 6), prompts("target", 6), sites=MIXED_SITES)


def test_site_key_has_component_name_and_output_index() -> None:
    assert site("a.b").key == "toy/a.b"
    assert site("a.b", output=1).key == "toy/a.b#1"


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("toy/a", "toy/a", True),
        ("toy/a", "toy/a#1", True),
        ("toy/a#1", "toy/a#1", True),
        ("toy/a#0", "toy/a#1", False),
        ("*#1", "toy/a", False),
        ("*a", "toy/a#1", True),
        ("toy/A", "toy/a", False),
    ],
)
def test_matches_with_or_without_output_index(pattern: str, key: str, fits: bool) -> None:
    assert matches((pattern,), key) is fits


def test_map_finds_transport_by_key() -> None:
    found = act_map(a=affine(1, 0), b=affine(2, 1))
    assert found["toy/b"].beta.tolist() == [1, 1]
    assert found.site("toy/a") == site("a")
    assert len(found) == 2
    with pytest.raises(KeyError):
        found["toy/c"]


def test_map_refuses_no_sites() -> None:
    with pytest.raises(MapError, match="at least one site"):
        ActMap({})


def test_map_refuses_transport_of_other_channels() -> None:
    with pytest.raises(MapError, match=r"toy/a has 2 channels, its transport 3"):
        ActMap({site("a"): affine(1, 0, channels=3)})


def test_components_come_in_execution_order() -> None:
    order = ["clip_l", "diffusion_model", "clip_l"]
    sites = {site(str(i), component=name): affine(1, 0) for i, name in enumerate(order)}
    assert ActMap(sites).components == ("clip_l", "diffusion_model")


def test_fallbacks_count_all_sites() -> None:
    assert act_map(a=replace(affine(1, 0), fallbacks=2), b=replace(affine(1, 0), fallbacks=1)).fallbacks == 3


def test_restrict_keeps_matching_sites_in_order(fitted: ActMap) -> None:
    kept = fitted.restrict("toy/split#1", "*conv")
    assert keys(kept) == ["toy/conv", "toy/split#1"]
    assert kept["toy/conv"] is fitted["toy/conv"]
    assert any("restricted" in edit for edit in kept.record.edits)
    assert fitted.record.edits == ()


def test_restrict_to_nothing_names_an_existing_site(fitted: ActMap) -> None:
    with pytest.raises(MapError, match="the first is toy/conv"):
        fitted.restrict("*attention*")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_scaled_refuses_strength_that_is_not_finite(fitted: ActMap, strength: float) -> None:
    with pytest.raises(MapError, match="must be a number from -1000 to 1000"):
        fitted.scaled(strength)


def test_scaled_by_one_is_the_map_and_by_zero_the_identity(fitted: ActMap) -> None:
    assert largest_difference(fitted.scaled(1), fitted) < 1e-6  # 1 + (omega - 1) in float64, kept in float32
    for transport in fitted.scaled(0).transports.values():
        assert torch.equal(transport.omega, torch.ones_like(transport.omega))
        assert torch.equal(transport.beta, torch.zeros_like(transport.beta))


@pytest.mark.parametrize(("strength", "expected"), [(2.0, (-0.5, 1.0)), (-1.0, (-2.0, 1.0)), (0.0, None)])
def test_scaled_adapts_recommended_strengths(
    fitted: ActMap, strength: float, expected: tuple[float, float] | None
) -> None:
    ranged = replace(fitted, card=Card(title="t", strength_range=(-1.0, 2.0)))
    assert ranged.scaled(strength).card == Card(title="t", strength_range=expected)


def test_inverse_of_inverse_is_the_map(fitted: ActMap) -> None:
    assert fitted.inverse().fallbacks == 0
    assert largest_difference(fitted.inverse().inverse(), fitted) < 1e-5  # twice kept in float32


def test_inverse_exchanges_prompts(fitted: ActMap) -> None:
    record, inverse = fitted.record, fitted.inverse().record
    assert (inverse.source_prompts, inverse.target_prompts) == (record.target_prompts, record.source_prompts)
    assert (inverse.source_count, inverse.target_count) == (record.target_count, record.source_count)
    assert inverse.edits == ("inverted",)


def test_inverse_counts_channels_it_cannot_invert(fitted: ActMap) -> None:
    flat = fitted["toy/head"]
    omega = flat.omega.clone()
    omega[:2] = 0
    changed = ActMap({**fitted.transports, fitted.site("toy/head"): replace(flat, omega=omega)})
    assert changed.inverse().fallbacks == 2


def test_then_inverse_is_the_identity(fitted: ActMap) -> None:
    for transport in fitted.then(fitted.inverse()).transports.values():
        # Slopes and offsets of either map are rounded to float32; offsets are up to 10.
        assert torch.allclose(transport.omega, torch.ones_like(transport.omega), atol=1e-5)
        assert torch.allclose(transport.beta, torch.zeros_like(transport.beta), atol=1e-5)


def test_then_composes_common_sites_and_keeps_the_others() -> None:
    both = act_map(a=affine(2, 1), b=affine(3, 0)).then(act_map(b=affine(5, 7), c=affine(4, 4)))
    assert {key: (float(both[key].omega[0]), float(both[key].beta[0])) for key in keys(both)} == {
        "toy/a": (2, 1),
        "toy/b": (15, 7),
        "toy/c": (4, 4),
    }


def test_then_keeps_sites_in_execution_order() -> None:
    every = act_map(**dict.fromkeys("abcd", affine(1, 0)))
    some = every.restrict("toy/b", "toy/d")
    assert keys(some.then(every)) == keys(every.then(some)) == keys(every)
    assert keys(some.then(every.restrict("toy/a"))) == ["toy/b", "toy/d", "toy/a"]  # nothing shows the order


def test_then_keeps_fingerprints_of_both_maps() -> None:
    bases = {name: Fingerprint(name, "w") for name in ("clip_l", "diffusion_model")}
    one, other = (replace(act_map(a=affine(1, 1)), record=FitRecord(base={name: bases[name]})) for name in bases)
    assert one.then(other).record.base == bases


def test_then_records_title_of_second_map() -> None:
    after = replace(act_map(a=affine(1, 1)), card=Card(title="calm"))
    assert act_map(a=affine(1, 1)).then(after).record.edits == ("then calm",)


def test_then_refuses_site_that_differs_in_shape() -> None:
    wider = ActMap({site("a", channels=3): affine(1, 0, channels=3)})
    with pytest.raises(MapError, match="toy/a differently"):
        act_map(a=affine(1, 0)).then(wider)


def test_then_refuses_observed_support() -> None:
    bounded = replace(affine(1, 1), low=torch.zeros(2), high=torch.ones(2))
    with pytest.raises(MapError, match="unbounded support"):
        act_map(a=affine(1, 0)).then(act_map(b=bounded))


def test_then_refuses_maps_of_different_spatial_rules() -> None:
    """One file records one rule for feature maps, so maps of two rules cannot become one."""
    shifted = ActMap({Site("toy", "a", None, "spatial", 2): affine(2, 1)}, FitRecord(spatial="shift"))
    pointwise = ActMap({Site("toy", "b", None, "spatial", 2): affine(2, 1)}, FitRecord(spatial="pointwise"))
    with pytest.raises(MapError):
        shifted.then(pointwise)


def test_difference_is_zero_only_for_equal_maps(fitted: ActMap) -> None:
    assert set(fitted.difference(fitted).values()) == {0}
    other = ActMap({s: replace(t, beta=t.beta * 1.5) for s, t in fitted.transports.items()})
    # (1.5 - 1) / 1.5, of float32 values.
    assert list(fitted.difference(other).values()) == pytest.approx([1 / 3] * 5, rel=1e-5)
    assert fitted.difference(other) == other.difference(fitted)


def test_difference_compares_supports() -> None:
    bounded = replace(affine(1, 1), low=torch.zeros(2), high=torch.ones(2))
    wider = replace(bounded, high=torch.full((2,), 2.0))
    assert act_map(a=bounded).difference(act_map(a=wider)) == {"toy/a": 0.5}
    assert act_map(a=bounded).difference(act_map(a=affine(1, 1))) == {"toy/a": math.inf}
    assert act_map(a=affine(1, 1)).difference(act_map(a=bounded)) == {"toy/a": math.inf}
    assert act_map(a=bounded).difference(act_map(a=bounded)) == {"toy/a": 0}


def test_repr_is_short_however_large_the_map_is() -> None:
    large = ActMap(
        {site(f"layer.{number}", 4096): affine(1, 0, 4096) for number in range(300)},
        FitRecord(source_prompts=("a" * 1000,) * 100),
        Card(title="Calm", cover=b"a" * 10_000),
    )
    assert repr(large) == "<ActMap 'Calm': 300 sites of toy, linear, causal>"
    assert repr(large["toy/layer.0"]) == "<Transport: 4096 channels>"
    assert max(len(repr(part)) for part in (large.record, large.card, large.site("toy/layer.0"))) < 600


def test_difference_refuses_maps_of_other_sites(fitted: ActMap) -> None:
    with pytest.raises(MapError, match="different sites"):
        fitted.difference(fitted.restrict("*conv"))


def test_edits_never_change_map_in_place(fitted: ActMap) -> None:
    before = fit(mixed(), prompts("source", 6), prompts("target", 6), sites=MIXED_SITES)
    for made in (fitted.inverse(), fitted.scaled(2), fitted.then(fitted), fitted.restrict("*")):
        assert made.record.edits
    assert_identical(fitted, before)
    assert fitted.record.edits == ()


# --- permission for other architectures


def test_every_map_made_from_a_permitted_one_is_permitted() -> None:
    one, other = act_map(a=affine(2, 1)), act_map(b=affine(2, 1))
    permitted = one.for_any_architecture()
    assert not one.any_architecture
    made = {
        "inverse": permitted.inverse(),
        "scaled": permitted.scaled(0.5),
        "restrict": permitted.restrict("toy/a"),
        "then": permitted.then(other),
        "then it": other.then(permitted),
        "joined": permitted.joined(other),
        "joined to it": other.joined(permitted),
    }
    assert [name for name, changed in made.items() if not changed.any_architecture] == []
    assert not one.inverse().then(other).any_architecture


# --- joining


def test_joined_has_sites_of_both_in_order() -> None:
    text = ActMap({site("a", component="text"): affine(1, 2)}, FitRecord(notes=("one",)))
    image = ActMap({site("b", component="image"): affine(3, 4)}, FitRecord(notes=("two",), seed=7), Card(title="t"))
    joined = text.joined(image)
    assert keys(joined) == ["text/a", "image/b"]
    assert joined["image/b"] is image["image/b"]
    assert joined.record.notes == ("one", "two")
    assert joined.record.seed == 7


def test_joined_keeps_fingerprints_of_both() -> None:
    text = ActMap({site("a", component="text"): affine(1, 2)}, FitRecord(base={"text": Fingerprint("t", "")}))
    image = ActMap({site("b", component="image"): affine(1, 2)}, FitRecord(base={"image": Fingerprint("i", "")}))
    assert list(text.joined(image).record.base) == ["text", "image"]


def test_joined_is_exact_only_if_both_are() -> None:
    text = ActMap({site("a", component="text"): affine(1, 2)}, FitRecord(walk="streamed"))
    image = ActMap({site("b", component="image"): affine(1, 2)}, FitRecord())
    assert text.joined(image).record.walk == image.joined(text).record.walk == "streamed"
    assert image.joined(ActMap({site("c"): affine(1, 2)}, FitRecord())).record.walk == "exact"


def test_joined_refuses_maps_of_different_spatial_rules() -> None:
    one = ActMap({Site("one", "a", None, "spatial", 2): affine(1, 2)}, FitRecord(spatial="pointwise"))
    other = ActMap({Site("other", "b", None, "spatial", 2): affine(1, 2)}, FitRecord())
    with pytest.raises(MapError, match="different rules"):
        one.joined(other)


def test_joined_refuses_maps_that_share_a_site() -> None:
    with pytest.raises(MapError, match="Both maps steer the site toy/a"):
        act_map(a=affine(1, 2)).joined(act_map(a=affine(1, 2)))
