"""When a reading of data may be called the right one: the rule that every diagnosis of a convention follows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Booleans = npt.NDArray[np.bool_]
Name = TypeVar("Name", bound=Hashable)

FEWEST = 30
"""Observations that two readings must differ in."""
WINS = 0.9
"""Share of these that the better one must explain."""


def beats(better: Booleans, other: Booleans) -> bool:
    """Whether one reading explains the same observations decisively better than another.

    This is a sign test. Only observations that exactly one of the two readings explains count; at least `FEWEST` of
    them must exist, and the better reading must explain at least the share `WINS`. If both readings were equally
    good, independent observations would give that with a probability below 1e-5.

    Args:
        better: [n] which observations it explains.
        other: [n] the same for the other reading.
    """
    alone, against = int((better & ~other).sum()), int((other & ~better).sum())
    return alone >= FEWEST and alone >= WINS * (alone + against)


def decided(explained: Mapping[Name, Booleans], least: float) -> Name | None:
    """Name of the reading that excludes all others; None if there is none.

    Args:
        explained: [n] by name of a reading, which observations it explains; one of them is the data as they are.
        least: Share of all observations that a reading must explain, from 0 to 1.

    Returns:
        The reading that explains the most observations, at least the share `least`, if it `beats` each other one.
    """
    best = max(explained, key=lambda name: int(explained[name].sum()))
    rest = (other for name, other in explained.items() if name != best)
    if explained[best].sum() < least * len(explained[best]) or not all(
        beats(explained[best], other) for other in rest
    ):
        return None
    return best
