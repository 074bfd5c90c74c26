"""Checks of the taps that a method reads, made before any data is read.

Every failure is one sentence: which setting reads the tap, what the detector lacks, and what it offers.
"""

from __future__ import annotations

from typing import TypeVar

from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import Taps, TapSpec

Spec = TypeVar("Spec", bound=TapSpec)


def require_tap(taps: Taps, name: str, kind: type[Spec], asked_by: str) -> Spec:
    """Return the description of a tap.

    Args:
        taps: The taps of a detector.
        name: Name of the tap.
        kind: Class that the description must have.
        asked_by: Start of the message, such as "distillbev layer 'bev_neck', teacher".

    Raises:
        UserError: If the detector has no such tap, or its description is of another class.
    """
    spec = taps.specs.get(name)
    if isinstance(spec, kind):
        return spec
    problem = f"has no tap {name!r}" if spec is None else f"offers {name!r} as {spec.noun}"
    raise UserError(f"{asked_by}: {taps.detector} {problem}, but {kind.noun} is needed; {choices(taps, kind)}")


def require_heatmaps(taps: Taps, asked_by: str, remedy: str) -> Grid:
    """Return the cells of the class heat maps that a detector's head predicts.

    Args:
        taps: The taps of a detector.
        asked_by: See `require_tap`.
        remedy: End of the message: which setting to change.

    Raises:
        UserError: If the detector has no head or its head predicts no heat maps.
    """
    head = taps.specs.get("head")
    if head is not None and head.heatmap_grid is not None:
        return head.heatmap_grid
    problem = "no tap 'head'" if head is None else f"{head.noun} as its head, which predicts no heat maps"
    raise UserError(f"{asked_by}: {taps.detector} has {problem}; {remedy}")


def choices(taps: Taps, kind: type[TapSpec]) -> str:
    """List the taps of one class that a detector offers, for messages."""
    offered = [f"{name} ({spec.words})" for name, spec in taps.specs.items() if isinstance(spec, kind)]
    if not offered:
        return f"{taps.detector} has no tap of that kind"
    return f"{taps.detector} offers {', '.join(offered)}"


def describe(channels: int, grid: Grid) -> str:
    """Describe a BEV map in words: channels, cells and extent."""
    x_min, y_min, x_max, y_max = grid.extent
    return (
        f"{channels} channels on {grid.ny} x {grid.nx} cells of {grid.cell:g} m, "
        f"x {x_min:g} to {x_max:g} m, y {y_min:g} to {y_max:g} m"
    )
