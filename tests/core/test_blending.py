"""Pruning a map, and blending several into one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MIXED_SITES, assert_identical, keys, mixed, prompts
from map_files import metadata_of

from act_core import ActMap, MapError, fit, load_map, save_map, steer
from act_core.blending import blend
from act_core.comparison import squared_displacements
from act_core.gates import Gate
from act_core.records import Card, Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Transport


def site(name: str, channels: int = 2, component: str = "toy") -> Site:
    return Site(component, name, None, "tokens", channels)


def affine(omega: float, beta: float, channels: int = 2) -> Transport:
    return Transport(torch.full((channels,), omega), torch.full((channels,), beta))


def act_map(**transports: Transport) -> ActMap:
    return ActMap({site(name): t for name, t in transports.items()})


@pytest.fixture(scope="module")
def fitted() -> ActMap:
    return fit(mixed(), prompts("source", 6), prompts("target", 6), sites=MIXED_SITES)


def test_pruned_keeps_fewest_sites_that_carry_the_share(fitted: ActMap) -> None:
    sizes = {s.key: float(v.sum()) for s, v in squared_displacements(fitted)[0].items()}
    total = sum(sizes.values())
    for share in (0.3, 0.6, 0.9, 0.99):
        pruned = fitted.pruned(share)
        kept = [sizes[key] for key in keys(pruned)]
        assert sum(kept) >= share * total > sum(kept) - min(kept)
        assert min(kept) >= max((size for key, size in sizes.items() if key not in keys(pruned)), default=0)
        assert all(pruned[key] is fitted[key] for key in keys(pruned))
        assert pruned.record.edits == (f"pruned to the sites that carry {share:g} of the effect",)


def test_pruned_channels_become_the_identity(fitted: ActMap) -> None:
    pruned = fitted.pruned(0.7, "channels")
    squares = squared_displacements(fitted)[0]
    kept = torch.cat([squares[s][(t.omega != 1) | (t.beta != 0)] for s, t in pruned.transports.items()])
    total = torch.cat(list(squares.values())).sum()
    assert kept.sum() >= 0.7 * total > kept.sum() - kept.min()
    for s, transport in pruned.transports.items():
        moved = (transport.omega != 1) | (transport.beta != 0)
        assert bool(moved.any())
        assert torch.equal(transport.omega[moved], fitted[s.key].omega[moved])
        assert torch.equal(transport.beta[moved], fitted[s.key].beta[moved])


def test_pruned_channels_are_left_alone_on_live_model() -> None:
    model = torch.nn.Sequential(torch.nn.Identity())
    pruned = ActMap({Site("model", "0", None, "tokens", 2): Transport(torch.ones(2), torch.tensor([9.0, 1.0]))})
    x = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    with steer(model, pruned.pruned(0.9, "channels")):
        moved = model(x)
    assert torch.equal(moved[..., 1], x[..., 1])
    assert torch.equal(moved[..., 0], x[..., 0] + 9)


def test_whole_share_keeps_the_map(fitted: ActMap) -> None:
    assert fitted.pruned(1.0) is fitted
    assert_identical(fitted.pruned(1, "channels"), fitted)


def test_pruned_counts_bins_together() -> None:
    binned = Transport(torch.ones(2, 2), torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
    pruned = ActMap({site("a"): binned}, levels=(0.9, 0.1)).pruned(0.8, "channels")
    assert pruned["toy/a"].beta.tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert pruned.levels == (0.9, 0.1)


@pytest.mark.parametrize("share", [np.float32(0.5), torch.tensor(0.5)])
def test_pruned_accepts_numbers_of_numpy_and_torch(fitted: ActMap, share: Any) -> None:
    assert_identical(fitted.pruned(share), fitted.pruned(0.5))


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan"), "half", True])
def test_pruned_refuses_what_is_not_a_share(fitted: ActMap, share: float) -> None:
    with pytest.raises(MapError, match="above 0 and at most 1"):
        fitted.pruned(share)


def test_blend_adds_weighted_moves(fitted: ActMap) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    at = Site("model", "0", None, "vector", 2)
    maps = [ActMap({at: affine(omega, beta)}) for omega, beta in ((2.0, 1.0), (0.5, -3.0), (1.0, 2.0))]
    weights = [0.5, 2.0, -1.0]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x)
        wanted = before.clone()
        for one, weight in zip(maps, weights, strict=True):
            with steer(model, one, weight):
                wanted += model(x) - before
        with steer(model, blend(list(zip(maps, weights, strict=True)))):
            assert torch.allclose(model(x), wanted, atol=1e-5)  # float32 sums in another order


def test_blend_keeps_sites_of_all_in_order() -> None:
    one = act_map(a=affine(1, 2), c=affine(1, 4))
    other = act_map(a=affine(3, 0), b=affine(1, 6), c=affine(1, 0), d=affine(1, 8))
    mixed_map = blend([(one, 0.5), (other, 0.25)])
    assert keys(mixed_map) == ["toy/a", "toy/b", "toy/c", "toy/d"]
    found = {key: (float(mixed_map[key].omega[0]), float(mixed_map[key].beta[0])) for key in keys(mixed_map)}
    assert found == {"toy/a": (1.5, 1.0), "toy/b": (1, 1.5), "toy/c": (1, 2.0), "toy/d": (1, 2.0)}


def test_blend_compares_all_of_its_maps() -> None:
    other, third = act_map(a=affine(1, 2), b=affine(1, 2)), act_map(a=affine(1, 2))
    wider = Site("toy", "b", None, "tokens", 3)
    third = replace(third, transports={**third.transports, wider: affine(1, 2, channels=3)})
    with pytest.raises(MapError, match="toy/b differently"):
        blend([(act_map(a=affine(1, 2)), 1), (other, 1), (third, 1)])


def test_blend_names_its_maps(path: Path) -> None:
    ink = replace(act_map(a=affine(1, 2)), card=Card("Ink", "Ann", license="CC0-1.0"))
    night = replace(act_map(a=affine(1, 4)), card=Card("Night", "Ben", "Dark.", "CC0-1.0", (0.0, 2.0)))
    mixed_map = blend([(ink, 0.5), (night, 0.25)])
    assert mixed_map.card == Card("Ink + Night", license="CC0-1.0")
    assert mixed_map.record.edits == ("blended: 0.5 x Ink + 0.25 x Night",)
    again = blend([(mixed_map, 1), (act_map(a=affine(1, 1)), 1)])
    assert again.record.merged_from == ("Ink", "Night", "untitled")
    save_map(mixed_map, path)
    assert load_map(path).record.merged_from == ("Ink", "Night")
    assert metadata_of(path)["modelspec.merged_from"] == "Ink, Night"
    assert metadata_of(path)["act.format"] == "1"
    assert ink.then(night).record.merged_from == ("Ink", "Night")


def test_blend_has_the_base_of_its_first_map() -> None:
    records = [FitRecord(base={"toy": Fingerprint("llama", weights)}) for weights in ("11", "22")]
    first, second = (replace(act_map(a=affine(1, 1)), record=record) for record in records)
    assert blend([(first, 1), (second, 1)]).record.base == first.record.base


def test_blend_has_the_most_fallbacks_of_its_maps() -> None:
    few, many = (act_map(a=replace(affine(1, 1), fallbacks=count)) for count in (0, 2))
    assert [blend([(one, 1), (other, 1)])["toy/a"].fallbacks for one, other in ((few, many), (many, few))] == [2, 2]


def test_blend_is_for_any_architecture_if_one_of_its_maps_is() -> None:
    plain = act_map(a=affine(1, 1))
    free = plain.for_any_architecture()
    assert blend([(plain, 1), (free, 1)]).any_architecture
    assert not blend([(plain, 1), (plain, 1)]).any_architecture


def test_map_that_was_not_merged_does_not_mention_it(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    assert not any("merged_from" in text for item in metadata_of(path).items() for text in item)


def refusals() -> dict[str, tuple[ActMap, ActMap]]:
    plain = act_map(a=affine(1, 1))
    bases = [FitRecord(base={"toy": Fingerprint(name, "")}) for name in ("Flux", "llama")]
    gated = replace(affine(1, 1), gate=Gate(torch.ones(2), 0.0))
    observed = replace(affine(1, 1), low=torch.zeros(2), high=torch.ones(2))
    binned = Transport(torch.ones(1, 2), torch.ones(1, 2))
    rules = [ActMap({Site("toy", "a", None, "spatial", 2): affine(1, 1)}, FitRecord(spatial=rule))
             for rule in ("shift", "pointwise")]  # fmt: skip
    return {
        "one steers toy, the other text": (plain, ActMap({site("a", component="text"): affine(1, 1)})),
        "different models, Flux and llama": (replace(plain, record=bases[0]), replace(plain, record=bases[1])),
        "read site toy/a differently": (plain, ActMap({site("a", 3): affine(1, 1, 3)})),
        "different noise levels": (plain, ActMap({site("a"): binned}, levels=(0.5,))),
        "different rules": (rules[0], rules[1]),
        "observed or gated support": (plain, act_map(a=gated)),
        "cannot be blended; apply them together": (act_map(b=observed), plain),
    }


@pytest.mark.parametrize("sentence", refusals())
def test_blend_refuses_maps_that_do_not_add_up(sentence: str) -> None:
    one, other = refusals()[sentence]
    with pytest.raises(MapError, match=sentence) as caught:
        blend([(one, 0.5), (other, 0.5)])
    assert "\n" not in str(caught.value)


def test_blend_refuses_single_map_and_bad_weight(fitted: ActMap) -> None:
    with pytest.raises(MapError, match="at least two maps"):
        blend([(fitted, 1)])
    with pytest.raises(MapError, match="must be a number"):
        blend([(fitted, 1), (fitted, float("nan"))])
