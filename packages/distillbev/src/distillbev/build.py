"""Build the method from its configuration and taps; everything that needs no data is checked here."""

from __future__ import annotations

from collections.abc import Mapping

from bevkd_common.distill.adapters import adapted_grid, build_adapter
from bevkd_common.distill.taps import Spec, choices, describe, require_heatmaps, require_tap
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import BevMap, HeadMaps, Queries, Taps
from torch import nn

from distillbev.config import DistillBevConfig, TapPair
from distillbev.method import AttentionSettings, DistillBev, Layer, LayerWeights, RegionSettings

PARTS: Mapping[str, str | None] = {
    "none": None,
    "task_heads": "head.task_heads",
    "head": "head",
    "decoder": "head.decoder",
}
"""Names in `Detector.parts`, by the value of `inherit`."""
DECODER: Mapping[str, str] = {name: name for name in ("classes", "layers", "channels")}
"""Attributes of `Queries` that give decoders weights of equal shapes."""


def build(config: DistillBevConfig, teacher: Taps, student: Taps) -> DistillBev:
    """Build the method between two detectors.

    Raises:
        UserError: If a tap is missing or of another kind, a student's map does not get the teacher's shape, heat
            maps do not fit a layer, or the heads are too different to inherit.
    """
    if config.inherit != "none":
        _check_heads(config.inherit, teacher, student)
    return DistillBev(
        [_layer(config, tap, teacher, student) for tap in config.active_taps],
        inherit=PARTS[config.inherit],
        weight=config.weight,
        regions=RegionSettings(
            decomposition=config.region_decomposition,
            adaptive_scaling=config.adaptive_scaling,
            gamma_teacher=config.gamma_teacher,
            gamma_ground_truth=config.gamma_ground_truth,
            sample_point=config.sample_point,
            overlap=config.overlap,
            ensure_center_cell=config.ensure_center_cell,
        ),
        attention=AttentionSettings(
            source=config.attention,
            imitated=None if config.attention_imitation == "none" else config.attention_imitation,
            tau=config.tau,
            student_ratio=config.student_ratio,
            false_positive_channels=config.false_positive_channel_attention,
        ),
    )


def _layer(config: DistillBevConfig, tap: TapPair, teacher: Taps, student: Taps) -> Layer:
    who = f"distillbev layer {tap.name!r}"
    target = require_tap(teacher, tap.teacher, BevMap, f"{who}, teacher")
    source = require_tap(student, tap.student, BevMap, f"{who}, student")
    grid = adapted_grid(tap.adapter, source.grid)
    channels = source.channels if tap.adapter.endswith("identity") else target.channels
    if channels != target.channels or not grid.matches(target.grid):
        raise UserError(
            f"{who}: adapter `{tap.adapter}` brings {tap.student} of the student {student.detector} to "
            f"{describe(channels, grid)}, but {tap.teacher} of the teacher {teacher.detector} has "
            f"{describe(target.channels, target.grid)}; choose another adapter or other taps in `method.taps`: "
            f"{choices(teacher, BevMap)}; {choices(student, BevMap)}"
        )
    false_positives = {"none": False, "chosen": tap.false_positives, "all": True}[config.false_positive_layers]
    if false_positives:
        for role, taps in (("teacher", teacher), ("student", student)):
            _check_heatmaps(who, role, taps, target.grid)
    learns_kernel = config.attention_imitation != "none" and config.attention_kernel == "conv3x3"
    return Layer(
        tap.name,
        tap.teacher,
        tap.student,
        target.grid,
        adapter=build_adapter(tap.adapter, source.channels, target.channels, config.align_corners),
        kernel=nn.Conv2d(1, 1, 3, padding=1) if learns_kernel else nn.Identity(),
        weights=LayerWeights(
            alpha=tap.alpha,
            beta=tap.beta,
            w_fp=tap.w_fp if config.eta is None else config.eta * tap.alpha,
            lam=tap.lam,
        ),
        false_positives=false_positives,
        normalized=tap.normalize == "teacher_rms",
    )


def _check_heatmaps(who: str, role: str, taps: Taps, grid: Grid) -> None:
    """Heat maps are pooled or repeated to a layer's cells, so that one grid must divide the other."""
    heatmap = require_heatmaps(
        taps,
        f"{who}, false positives, {role}",
        "set `false_positives: false` for this layer, or `false_positive_layers: none`",
    )
    coarse, fine = sorted((heatmap, grid), key=lambda cells: cells.nx)
    if not coarse.coarsened(1 / (fine.nx // coarse.nx)).matches(fine):
        raise UserError(
            f"{who}: the heat map of the {role} {taps.detector} ({heatmap.ny} x {heatmap.nx} cells of "
            f"{heatmap.cell:g} m) cannot be brought to the layer's {grid.ny} x {grid.nx} cells of {grid.cell:g} m "
            "over the same ground; set `false_positives: false` for this layer, or choose other grids"
        )


def _check_heads(part: str, teacher: Taps, student: Taps) -> None:
    if part == "decoder":
        _check_equal(part, Queries, DECODER, teacher, student)
    elif part == "head" and isinstance(student.specs.get("head"), Queries):
        _check_equal(part, Queries, {**DECODER, "count": "count"}, teacher, student)
    else:
        _check_equal(part, HeadMaps, {"tasks": "tasks", "branches": "layout"}, teacher, student)


def _check_equal(part: str, kind: type[Spec], compared: Mapping[str, str], teacher: Taps, student: Taps) -> None:
    """Refuse heads that are not of a kind, or differ in one of the attributes compared, given by their words."""
    ours, theirs = (
        require_tap(taps, "head", kind, f"distillbev `inherit: {part}`, {role}")
        for role, taps in (("student", student), ("teacher", teacher))
    )
    for what, attribute in compared.items():
        mine, given = getattr(ours, attribute), getattr(theirs, attribute)
        if mine != given:
            raise UserError(
                f"distillbev `inherit: {part}`: the heads of the teacher {teacher.detector} and the student "
                f"{student.detector} have different {what}: {given} and {mine}; make them equal, or set "
                "`inherit: none`"
            )
