"""Which rows of a batch are steered."""

from __future__ import annotations


class BatchRows:
    """Which parts of every batch are moved, such as one branch under classifier-free guidance.

    Several maps may share one; it is read at every call of the model.

    Attributes:
        parts: numbers of the parts that are moved; None for the whole batch.
        of: how many parts of equal size a batch has.
    """

    def __init__(self, parts: tuple[int, ...] | None = None, of: int = 1) -> None:
        self.parts = parts
        self.of = of

    def choose(self, parts: tuple[int, ...] | None, of: int = 1) -> None:
        """Take other parts from the next call of the model on."""
        self.parts, self.of = parts, of
