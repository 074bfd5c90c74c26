"""Checks of the taps that a method asks for; made before any data is read.

Every failure is one sentence for the user: who asks, which detector lacks what, and what there is to choose from.
"""

from __future__ import annotations

from typing import TypeVar

from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import Attention, BevMap, HeadMaps, ImageMap, Queries, Taps, TapSpec

Spec = TypeVar("Spec", BevMap, ImageMap, Attention, HeadMaps, Queries)

KIND_NAMES: dict[type[TapSpec], str] = {
    BevMap: "a bird's-eye-view map",
    ImageMap: "an image feature map",
    Attention: "a set of attention weights",
    HeadMaps: "a set of head maps",
    Queries: "a set of queries",
}


def require_tap(taps: Taps, name: str, kind: type[Spec], asked_by: str) -> Spec:
    """The description of a tap.

    Args:
        taps: What the detector offers.
        name: The tap.
        kind: What it has to be.
        asked_by: Who needs it, for the message: "distillbev layer 'bev_neck', teacher".

    Raises:
        UserError: If the detector has no such tap, or one of another kind.
    """
    spec = taps.specs.get(name)
    if isinstance(spec, kind):
        return spec
    problem = f"has no tap {name!r}" if spec is None else f"offers {name!r} as {KIND_NAMES[type(spec)]}"
    raise UserError(
        f"{asked_by}: {taps.detector} {problem}, but needed is {KIND_NAMES[kind]}; {choices(taps, kind)}"
    )


def choices(taps: Taps, kind: type[TapSpec]) -> str:
    """The second half of a message: the taps of a kind that a detector offers."""
    offered = [f"{name} ({_shape(spec)})" for name, spec in taps.specs.items() if isinstance(spec, kind)]
    if not offered:
        return f"{taps.detector} offers nothing of that kind"
    return f"{taps.detector} offers {', '.join(offered)}"


def describe(channels: int, grid: Grid) -> str:
    """A map in words: channels, cells, and where they lie."""
    x_min, y_min, x_max, y_max = grid.extent
    return (
        f"{channels} channels on {grid.ny} x {grid.nx} cells of {grid.cell:g} m, "
        f"x {x_min:g} to {x_max:g} m, y {y_min:g} to {y_max:g} m"
    )


def _shape(spec: TapSpec) -> str:
    match spec:
        case BevMap():
            return f"{spec.channels} x {spec.grid.ny} x {spec.grid.nx}, {spec.grid.cell:g} m"
        case ImageMap():
            return f"{spec.channels} channels, stride {spec.stride}"
        case Attention():
            return f"{spec.grid.ny} x {spec.grid.nx} cells, {spec.heads} x {spec.groups} x {spec.points} weights"
        case HeadMaps():
            return f"{len(spec.tasks)} tasks, {spec.grid.ny} x {spec.grid.nx}"
        case Queries():
            return f"{spec.layers} layers of {spec.count} queries"
