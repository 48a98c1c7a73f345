"""Errors for sites that are not in a model: what was looked for, and what to try."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from .architectures import PRESETS
from .errors import FitError
from .sites import matches


def listed(sites: str) -> list[str]:
    """The presets and patterns of a setting."""
    return [part.strip() for part in sites.split(",") if part.strip()]


def is_preset(name: str) -> bool:
    """Whether this is the name of a preset rather than a pattern."""
    return name in ("auto", "all") or name in PRESETS


def check_names(sites: str, names: Sequence[str], *, any_module: bool) -> None:
    """Refuse a pattern that matches no submodule of any component.

    Args:
        sites: presets and patterns.
        names: of all submodules, with their component.
        any_module: whether any submodule matches a preset or pattern.

    Raises:
        FitError: a pattern matches nothing, or the model has none of the presets.

    Example:
        >>> check_names("toy/laers.0", ["toy/", "toy/layers.0"], any_module=False)
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: No part of the model matches the sites 'toy/laers.0'; the closest names are \
toy/layers.*.
    """
    given = listed(sites)
    misspelt = [pattern for pattern in given if not is_preset(pattern) and not _found(_module(pattern), names)]
    if any_module and not misspelt:
        return
    if given and not misspelt:
        raise FitError(f"This model has no sites of the preset {given[0]!r}; choose another preset, or give patterns.")
    wrong = (misspelt or [sites])[0]
    kinds = _kinds(names)
    close = difflib.get_close_matches(wrong.strip(), kinds, n=3, cutoff=0)
    advice = f"the closest names are {', '.join(close)}" if close else "the model has no named parts, so wrap it in one"
    raise FitError(f"No part of the model matches the sites {wrong!r}; {advice}.")


def check_found(
    sites: str, found: Collection[str], returned: Mapping[str, str], rows: int, by_rule: Mapping[str, Sequence[str]]
) -> None:
    """Refuse a pattern that found no site; a preset may have none in one of several components.

    Args:
        sites: presets and patterns.
        found: keys of the sites.
        returned: by submodule that ran, what it returned that is not a site; empty if it returned one.
        rows: prompts of the dry run.
        by_rule: names of the submodules that ran, by architecture whose sites were looked for by rule.

    Raises:
        FitError: one did.
    """
    silent = [pattern for pattern in listed(sites) if not is_preset(pattern) and not _found(pattern, found)]
    if silent:
        _refuse(silent[0], returned, rows)
    if by_rule and not found:
        name, parts = next(iter(by_rule.items()))
        kinds = _kinds([part for part in parts if not returned.get(part)])
        example = ", ".join(repr(kind) for kind in kinds[:3]) or "'*norm*' or '*.layers.*.mlp'"
        raise FitError(
            f"The architecture {name!r} has no presets, and a search for {sites!r} found nothing in it: it looks for "
            "numbered blocks, such as layers.0, that hold linear layers and return one row for each prompt; give "
            f"patterns instead, such as {example}."
        )
    if not found:
        _refuse(sites, returned, rows)


def _refuse(pattern: str, returned: Mapping[str, str], rows: int) -> None:
    """Say why the submodules that match a pattern hold no site."""
    given = listed(pattern)
    ran = [name for name in returned if any(is_preset(part) or _found(_module(part), [name]) for part in given)]
    good = _kinds([name for name in returned if not returned[name]])
    advice = f"choose parts that do, such as {good[0]}" if good else "choose other parts"
    if not ran:
        raise FitError(
            f"The parts of the model that match the sites {pattern!r} never ran in a trial with {rows} prompts; "
            f"{advice}."
        )
    name = next((name for name in ran if returned[name]), ran[0])
    what = returned[name] or "no output of that number"
    raise FitError(
        f"No part of the model that matches the sites {pattern!r} returns activations, one row for each prompt: {name} "
        f"returned {what} for {rows} prompts; {advice}."
    )


def _module(pattern: str) -> str:
    return pattern.partition("#")[0]


def _found(pattern: str, names: Collection[str]) -> bool:
    return any(matches((pattern,), name) for name in names)


def _kinds(names: Collection[str]) -> list[str]:
    """Names with their numbers replaced by ``*``."""
    return list(dict.fromkeys(re.sub(r"\d+", "*", name) for name in names if not name.endswith("/")))
