"""Differences between the tensors of a model and those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import Tensor

LISTED = 8
"""Keys that a message lists before it counts the rest."""


@dataclass(frozen=True)
class Difference:
    """A key by which weights do not fit a model.

    Attributes:
        key: Under our name.
        found: Shape in the weights; None where the key is missing.
        wanted: Shape in the model; None where the key is unexpected.
        nearest: The key of the other side that it may be, or nothing.
    """

    key: str
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None
    nearest: str = ""

    @property
    def fault(self) -> Literal["missing", "unexpected", "shape"]:
        """What is wrong with it."""
        return "missing" if self.found is None else "unexpected" if self.wanted is None else "shape"

    def __str__(self) -> str:
        if self.fault == "shape":
            return f"{self.key} is {self.found}, wanted {self.wanted}"
        near = f", nearest is {self.nearest}" if self.nearest else ""
        return f"{self.fault} {self.key} {self.found or self.wanted or ()}{near}"


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[Difference]:
    """Keys that are missing, then those that are unexpected, then those of another shape."""
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    return [
        *(Difference(key, None, tuple(wanted[key].shape), _nearest(key, unexpected)) for key in sorted(missing)),
        *(Difference(key, tuple(found[key].shape), None, _nearest(key, missing)) for key in sorted(unexpected)),
        *(
            Difference(key, tuple(found[key].shape), tuple(wanted[key].shape))
            for key in sorted(wanted.keys() & found.keys())
            if wanted[key].shape != found[key].shape
        ),
    ]


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One line a key that is missing, unexpected or of another shape: the first few, and how many more."""
    lines = [str(difference) for difference in differences(wanted, found)]
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more"]


def _nearest(name: str, names: set[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1)), "")
