"""Builds UniDistill for two detectors, and checks that their taps fit."""

from __future__ import annotations

import logging
from typing import cast

from bevkd_common.distill.taps import choices, require_heatmaps, require_tap
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import BevMap, HeadMaps, Meaning, Taps
from torch import nn

from unidistill.config import AdapterKind, MapPair, UniDistillConfig
from unidistill.method import PairedMaps, Response, UniDistill

_log = logging.getLogger(__name__)


def build(config: UniDistillConfig, teacher: Taps, student: Taps) -> UniDistill:
    """Build the losses and adapters between two detectors.

    Args:
        config: Weights, taps and quirks.
        teacher: Taps of the teacher.
        student: Taps of the student.

    Raises:
        UserError: If a tap is missing or of another kind, channels differ and no adapter brings them together, maps
            do not overlap, or a head predicts no heat maps.
    """
    low = _pair("low", config.low, teacher, student) if config.feature_weight else None
    high = _pair("high", config.high, teacher, student) if config.relation_weight else None
    return UniDistill(
        low,
        high,
        _response(config, teacher, student) if config.response_weight else None,
        feature_weight=config.feature_weight,
        relation_weight=config.relation_weight,
        area=config.area,
        overlap=config.overlap,
        transposed=config.transpose_points,
        batch_statistics=config.teacher_batch_norm == "batch",
    )


def _pair(key: str, pair: MapPair, teacher: Taps, student: Taps) -> PairedMaps:
    who = f"unidistill `{key}`"
    target = require_tap(teacher, pair.teacher, BevMap, f"{who}, teacher")
    source = require_tap(student, pair.student, BevMap, f"{who}, student")
    _check_overlap(who, target.grid, source.grid, teacher, student)
    if pair.adapter == "none" and source.channels != target.channels:
        raise UserError(
            f"{who}: {pair.student} of {student.detector} has {source.channels} channels and {pair.teacher} of "
            f"{teacher.detector} {target.channels}; set `method.{key}.adapter: conv1x1`, or choose other taps: "
            f"{choices(teacher, BevMap)}; {choices(student, BevMap)}"
        )
    before, after = _adapter(pair.adapter, source.channels, target.channels)
    return PairedMaps(pair.teacher, pair.student, target.grid, source.grid, before, after)


def _adapter(kind: AdapterKind, channels: int, wanted: int) -> tuple[nn.Module, nn.Module]:
    """What is applied before and after sampling.

    A 1x1 convolution commutes with bilinear sampling inside the map, where it is a linear layer on the samples.
    """
    if kind == "conv3x3_bn_relu":
        convolution = nn.Conv2d(channels, wanted, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(wanted), nn.ReLU()), nn.Identity()
    if kind == "none":
        return nn.Identity(), nn.Identity()
    linear = nn.Linear(channels, wanted)
    if channels == wanted:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Identity(), linear


def _response(config: UniDistillConfig, teacher: Taps, student: Taps) -> Response:
    remedy = "set `method.response_weight: 0`"
    theirs, ours = (require_heatmaps(taps, "unidistill response", remedy) for taps in (teacher, student))
    _check_overlap("unidistill response", theirs, ours, teacher, student)
    return Response(
        weight=config.response_weight,
        teacher_grid=theirs,
        grid=ours,
        branches=_common_branches(teacher, student, same_cells=abs(theirs.cell - ours.cell) < 1e-6 * ours.cell),
        overlap=config.overlap,
        temperature=config.temperature,
        clamp=config.clamp,
        padding_stamps=config.padding_stamps,
    )


def _common_branches(teacher: Taps, student: Taps, *, same_cells: bool) -> tuple[tuple[str, str], ...]:
    """Names of the branches of both heads that mean the same; the others are named in a warning."""
    heads = [taps.specs["head"] for taps in (teacher, student)]
    if not all(isinstance(head, HeadMaps) for head in heads):
        _log.warning("unidistill response: class scores alone are compared, a head predicts no maps of boxes")
        return ()
    theirs, ours = cast("list[HeadMaps]", heads)
    if theirs.tasks != ours.tasks:
        _log.warning("unidistill response: class scores alone are compared, the heads have different tasks")
        return ()
    by_meaning = {branch.meaning: branch for branch in theirs.branches}
    common, left_out = [], []
    for branch in ours.branches:
        other = by_meaning.get(branch.meaning)
        fits = other is not None and other.channels == branch.channels
        # An offset in cells of another size is another number.
        if other is None or not fits or (branch.meaning is Meaning.CENTER_OFFSET and not same_cells):
            left_out.append(f"{branch.name} ({branch.meaning})")
        else:
            common.append((other.name, branch.name))
    if left_out:
        _log.warning("unidistill response: not compared, because the heads differ: %s", ", ".join(left_out))
    return tuple(common)


def _check_overlap(who: str, theirs: Grid, ours: Grid, teacher: Taps, student: Taps) -> None:
    first, second = theirs.extent, ours.extent
    if not all(max(first[axis], second[axis]) < min(first[axis + 2], second[axis + 2]) for axis in (0, 1)):
        raise UserError(
            f"{who}: the maps of {teacher.detector} (x, y from {first[0]:g}, {first[1]:g} to {first[2]:g}, "
            f"{first[3]:g} m) and {student.detector} (from {second[0]:g}, {second[1]:g} to {second[2]:g}, "
            f"{second[3]:g} m) do not overlap; choose other grids"
        )
