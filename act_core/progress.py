"""Progress bars of the command line."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from .fitting import FitModel, fit
from .maps import ActMap
from .prompts import PromptSet
from .settings import FitSettings


def bar(label: str, total: int) -> tqdm[Any]:
    """A bar on standard output.

    Example::

        with bar("Drawing", 6) as drawing:
            drawing.update()
    """
    return tqdm(desc=label, total=total, bar_format="{desc}: {bar:30} {n_fmt}/{total_fmt} [{elapsed}]", file=sys.stdout)


def fit_with_bar(
    model: FitModel[str], prompts: PromptSet, settings: FitSettings | None = None, **changes: Any
) -> ActMap:
    """`fit`, with a bar that counts the sites.

    Example::

        act_map = fit_with_bar(model, load_prompt_set("gloomy_to_cheerful.txt"), sites="norms")
    """
    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def progress(done: int, total: int, _site: str) -> None:
            if not bars:  # opened only now, below what the fit may have logged
                bars.append(stack.enter_context(bar(f"Fitting {prompts.source_name} to {prompts.target_name}", total)))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        return fit(model, prompts.source, prompts.target, settings, progress=progress, **changes)
