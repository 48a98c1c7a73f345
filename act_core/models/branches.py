"""Which rows of a pipeline's calls belong to which branch under guidance.

Pipelines run the negative prompt before or after the positive one, in the same call of the diffusion model or in
another, and not in every step. So each call is compared with a call that is known to be positive: the positive prompts
run up to the diffusion model once, without guidance. What the text encoders return there is used again.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor

from ..errors import MapMismatchError
from ..steering import BatchRows
from .pipeline_calls import Call, FirstCall, same

Rows = Mapping[str, BatchRows]


def choose(rows: Rows, positive: Sequence[int] | None, of: int = 1, total: int | None = None) -> None:
    """Choose the parts of a call that are positive; all others are negative.

    Args:
        rows: by branch.
        positive: numbers of the parts; None for the whole call.
        of: number of parts.
        total: number of rows of the call.
    """
    if positive is not None and not positive:
        rows["positive"].choose(())
        rows["negative"].choose(None)
    elif positive is None or len(positive) == of:
        rows["positive"].choose(None)
        rows["negative"].choose(())
    else:
        rows["positive"].choose(tuple(positive), of, total)
        rows["negative"].choose(tuple(part for part in range(of) if part not in positive), of, total)


def unguided_rows() -> dict[str, BatchRows]:
    """Rows by branch, as in every call without guidance: all of them are positive."""
    rows = {branch: BatchRows() for branch in ("positive", "negative")}
    choose(rows, None)
    return rows


@contextmanager
def resetting(*rows: Rows) -> Generator[None, None, None]:
    """After the block, rows are as in a call without guidance again: the next one may be that of a fit."""
    try:
        yield
    finally:
        for by_branch in rows:
            choose(by_branch, None)


class Branches:
    """Chooses the rows of each branch before each call of a pipeline's models.

    Args:
        first: the positive prompts' first call of the diffusion model.
        conditioning: see `CallPlan`.
        text_rows, model_rows: by branch, the rows of the text encoders and of the diffusion model.
        kind: name of the pipeline, for errors.
    """

    def __init__(
        self, first: FirstCall, conditioning: Sequence[str], text_rows: Rows, model_rows: Rows, kind: str
    ) -> None:
        self._count = first.call.rows
        rows = first.call.by_row()
        self._conditioning = {path: rows[path] for path in conditioning if path in rows}
        self._encoded = first.encoded
        self._text_rows = text_rows
        self._model_rows = model_rows
        self._kind = kind
        self._found: bool | None = None

    def encode(self, call: Call) -> Any:
        """A call of a text encoder: what it returned for the positive prompts before, or else a new run."""
        for known, output in self._encoded:
            if known.place == call.place and _equal(known.arguments, call.arguments):
                return output
        ids = call.by_row().get("input_ids", [])
        positive = {_key(row) for known, _ in self._encoded for row in known.by_row().get("input_ids", [])}
        parts = [part for part in range(self._parts(call)) if self._all(part, [_key(row) in positive for row in ids])]
        choose(self._text_rows, parts, self._parts(call), call.rows)
        return call.run()

    def denoise(self, call: Call) -> Any:
        """A call of the diffusion model."""
        self._encoded = []  # frees the memory
        rows = call.by_row()
        matches = [
            all(
                path in rows and same(rows[path][row], known[row % self._count])
                for path, known in self._conditioning.items()
            )
            for row in range(call.rows)
        ]
        of = self._parts(call)
        positive = [part for part in range(of) if self._all(part, matches)]
        self._found = bool(positive) or bool(self._found)
        choose(self._model_rows, positive, of, call.rows)
        return call.run()

    def after_step(self) -> None:
        """Raise an error if the calls of the diffusion model in the step that ends did not show a positive branch.

        Raises:
            MapMismatchError: they did not.
        """
        if self._found is False:
            raise MapMismatchError(
                f"The rows of the positive prompt cannot be found in a {self._kind}, so one branch alone cannot be "
                "steered; steer both branches, or turn guidance off."
            )
        self._found = None

    def _parts(self, call: Call) -> int:
        """The number of parts of a call, each of which has a row for each prompt; 0 if it has no such parts."""
        return 0 if call.rows % self._count else call.rows // self._count

    def _all(self, part: int, matches: Sequence[bool]) -> bool:
        own = matches[part * self._count : (part + 1) * self._count]
        return len(own) == self._count and all(own)


def _key(row: Tensor) -> tuple[int, ...]:
    return tuple(cast("list[int]", row.tolist()))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and same(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        first, second = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)
    return one is other or bool(one == other)
