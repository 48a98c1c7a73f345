"""Which rows of a batch are steered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import MapMismatchError


class BatchRows:
    """Which parts of every batch are steered, such as one branch under classifier-free guidance.

    Several maps may share one. It is read at every call of the model.

    Attributes:
        parts: numbers of the steered parts, counted from 0; None for all of them.
        of: how many parts of equal size the rows of a call have.
        rows: number of rows of the call; None to use those of each activation. Rows after them were appended inside the
            model, as some packs do, and are left unchanged. Rows may also be the frames of videos, which some layers
            join into ``[videos, channels, frames, height, width]``.

    Example:
        >>> rows = BatchRows()
        >>> rows.choose((1,), of=2, rows=2)
        >>> rows.apply(torch.tensor([1.0, 2.0, 3.0]), lambda part, _: 10 * part, "here")
        tensor([ 1., 20.,  3.])
    """

    def __init__(self, parts: tuple[int, ...] | None = None, of: int = 1, rows: int | None = None) -> None:
        self.choose(parts, of, rows)

    def choose(self, parts: tuple[int, ...] | None, of: int = 1, rows: int | None = None) -> None:
        """Choose the parts to steer from the next call of the model on.

        Args:
            parts: numbers from 0 to ``of - 1``; empty for nothing, None for everything.
            of: number of parts.
            rows: number of rows of the call.

        Raises:
            MapMismatchError: the rows cannot be divided into so many equal parts.
        """
        if rows is not None and rows % of:
            raise MapMismatchError(_indivisible("The batch", rows, of))
        self.parts, self.of, self.rows = parts, of, rows

    def apply(
        self, x: Tensor, move: Callable[[Tensor, Tensor | None], Tensor], name: str, mask: Tensor | None = None
    ) -> Tensor:
        """`x`, ``[rows, ...]``, with the chosen rows steered.

        Args:
            x: activation.
            move: called with each chosen part and its mask; returns it steered.
            name: name of the site, for errors.
            mask: a mask of tokens ``[rows, tokens]``.

        Raises:
            MapMismatchError: the rows of the activation cannot be divided into equal parts, or are not those of the
                call.
        """
        rows = x.shape[0] if self.rows is None else self.rows
        parts, of = ((0,), 1) if self.parts is None else (self.parts, self.of)
        if x.ndim == 5 and x.shape[0] * x.shape[2] == rows and x.shape[0] % of == 0:
            rows = x.shape[0]
        if x.shape[0] < rows:
            raise MapMismatchError(
                f"Site {name} returns {x.shape[0]} rows for a batch of {rows}, so the rows to steer cannot be told "
                "apart; fit a map with other sites."
            )
        if rows % of:
            raise MapMismatchError(_indivisible(f"The activation at site {name}", rows, of))
        if of == 1 and rows == x.shape[0]:
            return move(x, mask) if parts else x
        own = x if rows == x.shape[0] else x[:rows]
        chunks = list(own.chunk(of))
        masks: Sequence[Tensor | None] = [None] * of if mask is None else mask[:rows].chunk(of)
        for part in parts:
            chunks[part] = move(chunks[part], masks[part])
        if rows < x.shape[0]:
            chunks.append(x[rows:])
        return torch.cat(chunks)


def _indivisible(what: str, rows: int, of: int) -> str:
    return (
        f"{what} has {rows} rows, which cannot be divided into {of} equal parts, so the branch to steer is not known; "
        "steer both branches, or remove the node that changes the batch."
    )
