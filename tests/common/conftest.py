"""What tests of several rooms share: a KITTI result."""

import pytest
from bevkd_common.evaluation.results import PERCENT, Counts, Metric, Results, Table


@pytest.fixture
def kitti_results() -> Results:
    """Class, difficulty, view and recall positions, in percent; no scenes, no bands, no NDS."""
    classes, levels = ("Pedestrian", "Cyclist", "Car"), ("easy", "moderate", "hard")
    names = [f"{view} AP_{recalls}" for view in ("3D", "BEV") for recalls in ("R40", "R11")]
    return Results(
        protocol="KITTI, IoU 0.7 for cars and 0.5 for others",
        primary="3D AP_R40 moderate",
        headline={
            f"{name} moderate": Metric(value=60.0 + place, unit=PERCENT, higher_is_better=True)
            for place, name in enumerate(names)
        },
        tables=tuple(
            Table(
                title=name,
                rows=classes,
                columns=levels,
                units=(PERCENT,) * 3,
                values=((70.0, 60.5, 50.25),) * 3,
                compared="moderate",
            )
            for name in names
        ),
        counts=Counts(samples=3769, predictions=9, ground_truths=9),
        groups="samples",
    )
