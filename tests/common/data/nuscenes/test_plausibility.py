"""Boxes that were written in a foreign convention are named."""

import math

import pytest
import torch
from bevkd_common.data.nuscenes.plausibility import Plausibility
from bevkd_common.data.samples import Cloud, Sample
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.convention_checks import CONVENTION_CHECKS
from bevkd_common.geometry.transforms import rigid, rotation_z

LIDAR_YAW = 1.2


def lidar(points):
    return {"lidar": Cloud(points, (len(points),), tuple("xyzit"))}


def street(seed: int, *, shift: float = 0.0, moving: float = 0.6) -> Sample:
    """Twelve cars with points at their ends, most driving where they point; `shift` moves the older sweep."""
    generator = torch.Generator().manual_seed(seed)
    count = 12
    centers = torch.rand(count, 3, generator=generator) * torch.tensor([40.0, 40, 0.4]) - torch.tensor(
        [20.0, 20, 1]
    )
    size = torch.tensor([4.6, 1.9, 1.7]).expand(count, 3)
    yaw = torch.rand(count, generator=generator) * 2 * math.pi - math.pi
    speed = (torch.rand(count, generator=generator) < moving) * 6.0
    velocity = speed[:, None] * torch.stack([yaw.cos(), yaw.sin()], dim=-1)
    boxes = Boxes.from_parts(centers, size, yaw, velocity)
    unit = torch.rand(count, 60, 3, generator=generator) * 0.96 - 0.48
    unit[..., 0] = unit[..., 0].sign() * 0.45  # front and rear
    local = unit * size[:, None]
    cos, sin = yaw.cos()[:, None], yaw.sin()[:, None]
    turned = torch.stack(
        [local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos, local[..., 2]],
        dim=-1,
    )
    xyz = (turned + centers[:, None]).flatten(0, 1)
    still = (speed == 0).repeat_interleave(60)
    older = xyz[still] + torch.tensor([shift, 0.0, 0.0])
    zeros = torch.zeros(len(xyz), 1)
    points = torch.cat(
        [
            torch.cat([xyz, zeros, zeros], dim=1),
            torch.cat([older, torch.zeros(len(older), 1), torch.full((len(older), 1), 0.05)], dim=1),
        ]
    )
    return Sample(
        token=f"token{seed}",
        scene="scene",
        timestamp=0,
        boxes=boxes,
        labels=torch.zeros(count, dtype=torch.int64),
        cameras=None,
        clouds=lidar(points),
        aug_T_lidar=torch.eye(4),
        global_T_lidar=rigid(rotation_z(LIDAR_YAW), torch.tensor([100.0, 50.0, 1.0])).double(),
    )


def judged(change=None, **kwargs) -> Plausibility:
    plausibility = Plausibility()
    for seed in range(8):
        sample = street(seed, **kwargs)
        if change is not None:
            sample = Sample(**{**vars(sample), "boxes": change(sample.boxes, sample.global_T_lidar)})
        plausibility.add(sample)
    return plausibility


def test_sound_boxes_fail_no_convention_check():
    plausibility = judged()
    assert plausibility.findings() == []
    assert plausibility.best is None
    assert plausibility.heading == pytest.approx(1.0, abs=1e-5)
    assert plausibility.as_is.points_inside == 8 * 12 * 60
    assert plausibility.standing_share == pytest.approx(1.0, abs=0.05)


def test_every_wrong_convention_is_named(wrong_conventions):
    assert wrong_conventions.keys() == CONVENTION_CHECKS.keys()
    assert len(wrong_conventions) == 11
    for name, change in wrong_conventions.items():
        plausibility = judged(change)
        assert plausibility.best == name
        # The repair brings back (nearly) every point, it is not merely better than nothing.
        assert plausibility.repaired[name].points_inside > 0.95 * 8 * 12 * 60
        (finding,) = plausibility.findings()
        assert finding.startswith(CONVENTION_CHECKS[name].sentence)


def test_sizes_are_told_without_any_motion(wrong_conventions):
    assert judged(wrong_conventions["sizes"], moving=0.0).best == "sizes"
    assert judged(moving=0.0).best is None


def test_sweeps_that_are_out_of_place_are_told():
    (finding,) = judged(shift=3.0).findings()
    assert "the ego-motion between sweeps is wrong" in finding
    assert judged(shift=0.03).findings() == []


def test_little_evidence_concludes_nothing(wrong_conventions):
    plausibility = Plausibility()
    assert plausibility.findings() == []
    assert plausibility.heading is None
    assert plausibility.standing_share is None
    sample = street(0)
    few = Sample(
        **{
            **vars(sample),
            "clouds": lidar(sample.clouds["lidar"].points[::12]),
            "boxes": wrong_conventions["sizes"](sample.boxes, sample.global_T_lidar),
        }
    )
    plausibility.add(few)
    assert plausibility.findings() == []
