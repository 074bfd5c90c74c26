"""Features of points or pillars: rows without a map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """The value of a `Tokens` tap.

    Attributes:
        features: [T, C], the samples of a batch one after the other.
        coordinates: [T, K], the columns that the tap names.
        counts: B numbers of rows, which sum to T.
        points: [T] int64, number of points of the cloud behind each row.
    """

    features: Tensor
    coordinates: Tensor
    counts: tuple[int, ...]
    points: Tensor
