"""Draws what a data set's own check found."""

from __future__ import annotations

from pathlib import Path

from bevkd_common.data.dataset import DataCheck
from bevkd_common.experiment.scenes import scene_of
from bevkd_common.report import figures


def draw_pictures(found: DataCheck, folder: Path) -> list[Path]:
    """Draw the key frames of a check, from above and in the cameras; returns the files.

    Raises:
        UserError: If a sensor file is damaged.
    """
    written = []
    for picture in found.pictures:
        scene = scene_of(picture.batch, {}, found.cameras, found.extent)
        drawn = {"cameras": figures.annotated_cameras(scene), "above": figures.annotated_above(scene)}
        written += [
            figures.save(figure, folder / f"{scene.token}-{picture.name}-{view}.png")
            for view, figure in drawn.items()
            if figure is not None
        ]
    return written
