"""What a training step does itself of a dictionary, and what other processes do.

In one process that is everything, and the methods here hand back what they are given. `training.distributed` has the
shares of several: by feature, each process with the rows of its own, or by token, each encoding its own. A step is
written once, in terms of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from pullback.ops import SparseActivations

T = TypeVar("T")


class Share:
    """All features of a dictionary, and all tokens.

    Attributes:
        whole: every feature is held here.
        first: this process adds what is to be added once.
    """

    whole = True
    first = True

    def features(self, d_sae: int) -> slice:
        """Those that are held here, of all."""
        return slice(0, d_sae)

    def sum(self, part: Tensor) -> Tensor:
        """Over all features, of a sum over those held here; the same bits in every process."""
        return part

    def smallest(self, own: Tensor) -> Tensor:
        """The smallest over all features, of that over those held here."""
        return own

    def once(self, term: T) -> T | None:
        """A term of a sum that no feature owns."""
        return term if self.first else None

    def best(self, values: Tensor, k: int, relu: bool) -> Tensor:  # noqa: ARG002
        """What is among the k largest of a row over all features, ties to the lower id; 0 in place of the rest.

        Args:
            values: Float[Tensor, "n k'"], the largest of those held here, in order of id.
            k: of all.
            relu: whether only positive values count.
        """
        return values

    def batch_k(self, k: int, n: int) -> int:  # noqa: ARG002
        """Entries a row, of n rows held here, that a batch's k a row may come from at most."""
        return k

    def best_of_batch(self, acts: SparseActivations, k: int) -> SparseActivations:  # noqa: ARG002
        """The k largest a row on average over the whole batch, ties to the lower (row, id), of candidates held here."""
        return acts

    def encoded(self, encode: Callable[[Tensor], T], x: Tensor) -> T:
        """What `encode` makes of all rows x Float[Tensor, "n d_in"]."""
        return encode(x)


WHOLE = Share()
