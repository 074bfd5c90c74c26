"""Published checkpoints of other code bases: address, detector and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OPEN_MMLAB = "https://download.openmmlab.com/mmdetection3d/v1.0.0_models/centerpoint"
BEVDET = "Google Drive, from the README of HuangJunJie2017/BEVDet (first release)"
BEVDEPTH = "release v0.0.2 of Megvii-BaseDetection/BEVDepth"
DISTILLBEV = "Google Drive, from the README of qcraftai/distill-bev"


@dataclass(frozen=True)
class Published:
    """One checkpoint.

    Attributes:
        name: File name, or name of the model where the file name is unknown.
        where: Address, or description of the place.
        detector: Name that its authors use.
        kind: The `kind` of our detector as which it can be imported; empty where there is none.
        convention: Of its boxes, see `BoxFamily`; "det3d" is a third one.
        mean_ap: On nuScenes' val split, in percent; None where unknown.
        nds: As `mean_ap`.
        digest: Beginning of the SHA-256 of the file, where it is known.
    """

    name: str
    where: str
    detector: str
    kind: str
    convention: Literal["new", "old", "det3d"]
    mean_ap: float | None
    nds: float | None
    digest: str = ""


def _mmdet3d(size: str, stamp: str, digest: str, kind: str, mean_ap: float | None, nds: float | None) -> Published:
    name = f"centerpoint_{size}_circlenms_4x8_cyclic_20e_nus_{stamp}-{digest}.pth"
    folder = name.partition("_nus_")[0] + "_nus"
    detector = f"CenterPoint {size.partition('_')[0]}" + (", DCN head" if "dcn" in size else "")
    return Published(name, f"{OPEN_MMLAB}/{folder}/{name}", detector, kind, "new", mean_ap, nds, digest)


PUBLISHED = (
    _mmdet3d("02pillar_second_secfpn", "20220811_031844", "191a3822", "centerpoint", 48.70, 59.62),
    _mmdet3d("02pillar_second_secfpn_dcn", "20220811_045458", "808e69ad", "", None, None),
    _mmdet3d("01voxel_second_secfpn", "20220810_030004", "9061688e", "centerpoint_voxel", 56.11, 64.61),
    _mmdet3d("0075voxel_second_secfpn", "20220810_011659", "04cb3a3b", "centerpoint_voxel", 56.54, 65.17),
    _mmdet3d("0075voxel_second_secfpn_dcn", "20220810_025930", "657f67e0", "centerpoint_voxel", 56.92, 65.27),
    Published("CenterPoint voxel .075", "README of tianweiy/CenterPoint", "CenterPoint", "", "det3d", 59.6, 66.8),
    Published("MVP voxel", "README of tianweiy/MVP", "MVP", "", "det3d", 66.0, 69.9),
    Published("MVP pillar", "README of tianweiy/MVP", "MVP", "", "det3d", 62.8, 66.2),
    Published("BEVDet-R50", BEVDET, "BEVDet", "bevdet", "old", 29.9, 37.7),
    Published("BEVDet4D-R50", BEVDET, "BEVDet4D", "bevdet4d", "old", 32.2, 45.7),
    Published("BEVDepth-R50", BEVDET, "BEVDepth, one frame", "bevdepth", "old", 33.3, 40.6),
    Published("BEVDepth4D-R50", BEVDET, "BEVDepth, two frames", "bevdepth", "old", 36.1, 48.5),
    *(
        Published(
            f"bev_depth_lss_r50_256x704_128x128_{run}.pth",
            BEVDEPTH,
            "Megvii's BEVDepth",
            "megvii_bevdepth",
            "new",
            *scores,
        )
        for run, scores in {
            "24e_2key": (33.04, 43.55),
            "24e_2key_ema": (33.29, 44.09),
            "20e_cbgs_2key_da": (34.84, 48.05),
            "20e_cbgs_2key_da_ema": (35.89, 47.97),
        }.items()
    ),
    Published(
        "BEVFormer-tiny", "releases of fundamentalvision/BEVFormer", "BEVFormer", "bevformer", "old", 25.2, 35.4
    ),
    Published(
        "BEVFormer-small", "releases of fundamentalvision/BEVFormer", "BEVFormer", "bevformer", "old", 37.0, 47.9
    ),
    Published(
        "BEVFormer-base", "releases of fundamentalvision/BEVFormer", "BEVFormer", "bevformer", "old", 41.6, 51.7
    ),
    Published("BEVDepth-R50, alone", DISTILLBEV, "BEVDepth, two frames", "bevdepth", "old", 36.4, 48.4),
    Published("BEVDepth-R50, from CenterPoint", DISTILLBEV, "BEVDepth, two frames", "bevdepth", "old", 39.0, 50.6),
    Published("BEVDepth-R50, from MVP", DISTILLBEV, "BEVDepth, two frames", "bevdepth", "old", 40.3, 51.0),
)
