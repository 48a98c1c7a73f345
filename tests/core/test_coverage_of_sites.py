"""Coverage: how many sites of a map were found and fired."""

from __future__ import annotations

from act_core.sites import Coverage


def test_coverage_lists_fired_missing_and_silent_sites() -> None:
    coverage = Coverage(("a", "b", "c", "d"), missing=("d",), fires={"a": 2, "b": 0, "c": 1})
    assert coverage.fired == ("a", "c")
    assert coverage.silent == ("b",)
    assert str(coverage) == "2 of 4 sites fired, 1 not found (first: d), 1 never ran (first: b)"


def test_full_coverage_is_reported_briefly() -> None:
    assert str(Coverage(("a",), (), {"a": 1})) == "1 of 1 sites fired"


def test_components_without_model_are_reported() -> None:
    coverage = Coverage(("a",), (), {"a": 1}, unconnected=("clip_l", "t5xxl"))
    assert str(coverage) == "1 of 1 sites fired, clip_l and t5xxl not connected"
