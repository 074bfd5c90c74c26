"""Named values that are computed one after the other, each only when it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor


def take(values: Iterator[tuple[str, Tensor]], names: Collection[str]) -> dict[str, Tensor]:
    """Run an iterator until it has yielded all of `names`, and return these values.

    Raises:
        StopIteration: If the iterator ends first.
    """
    found: dict[str, Tensor] = {}
    while len(found) < len(names):
        name, value = next(values)
        if name in names:
            found[name] = value
    return found
