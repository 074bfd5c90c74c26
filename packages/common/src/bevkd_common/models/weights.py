"""Released checkpoints of other code bases, loaded strictly: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bevkd_common.errors import UserError
from bevkd_common.models.foreign_files import read_content

BoxFamily = Literal["new", "old"]
"""Box convention that a head was trained in: "new" is mmdet3d from 1.0 on, "old" is mmdet3d before 1.0, the
first BEVDet code base and DistillBEV."""

LISTED = 8
"""Keys that a message lists before it counts the rest."""


@dataclass(frozen=True)
class WeightMap:
    """How a released checkpoint names the tensors of one of our detectors.

    Attributes:
        source: Code base and model, for messages.
        prefixes: Theirs and ours; of each key the first prefix that fits is replaced.
        ignored: Beginnings of their keys that hold nothing to load, such as constants stored as parameters.
    """

    source: str
    prefixes: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors under our names; a key that no prefix fits keeps its name."""
        return {self._our_name(key): value for key, value in weights.items() if not key.startswith(self.ignored)}

    def _our_name(self, key: str) -> str:
        for theirs, ours in self.prefixes:
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key


CENTERPOINT_PILLAR = WeightMap(
    source="mmdet3d CenterPoint with pillars",
    prefixes=(
        ("pts_voxel_encoder.pfn_layers.0.", "pillars."),
        ("pts_backbone.", "backbone."),
        ("pts_neck.", "neck."),
        ("pts_bbox_head.", "head."),
    ),
)

BEVDET_R50 = WeightMap(
    source="BEVDet with ResNet-50",
    prefixes=(
        ("img_backbone.", "image_backbone.network."),
        ("img_neck.lateral_convs.0.conv.", "image_neck.laterals.0."),
        ("img_neck.lateral_convs.1.conv.", "image_neck.laterals.1."),
        ("img_neck.fpn_convs.0.conv.", "image_neck.output."),
        ("img_view_transformer.depthnet.", "lift_splat.depth_net.joint."),
        ("img_bev_encoder_backbone.layers.0.0.downsample.", "bev_stages.0.0.shortcut."),
        ("img_bev_encoder_backbone.layers.1.0.downsample.", "bev_stages.1.0.shortcut."),
        ("img_bev_encoder_backbone.layers.2.0.downsample.", "bev_stages.2.0.shortcut."),
        ("img_bev_encoder_backbone.layers.", "bev_stages."),
        ("img_bev_encoder_neck.conv.", "bev_neck.fuse."),
        # DistillBEV's students; inferred, because no list of their keys could be had.
        ("img_bev_encoder_neck.up2.5.", "bev_neck.norm_act.0."),
        ("img_bev_encoder_neck.up2.", "bev_neck.refine."),
        ("pts_bbox_head.", "head."),
    ),
    # Geometry stored as parameters; ours is recomputed from the configuration.
    ignored=tuple(f"img_view_transformer.{name}" for name in ("dx", "bx", "nx", "frustum")),
)

_EARLIER_FRAME = (
    ("pre_process_net.layers.0.0.downsample.", "earlier.stage.0.shortcut."),
    ("pre_process_net.layers.0.", "earlier.stage."),
)

BEVDET4D_R50 = replace(
    BEVDET_R50, source="BEVDet4D with ResNet-50", prefixes=(*BEVDET_R50.prefixes, *_EARLIER_FRAME)
)

BEVDEPTH_R50 = replace(
    BEVDET4D_R50,
    source="BEVDepth of the BEVDet code base with ResNet-50",
    prefixes=(
        ("img_view_transformer.depthnet.", "lift_splat.depth_net.depth."),
        ("img_view_transformer.featnet.", "lift_splat.depth_net.context."),
        ("img_view_transformer.se.input_conv.", "lift_splat.depth_net.reduce."),
        ("img_view_transformer.se.fc.0.", "lift_splat.depth_net.camera_norm."),
        ("img_view_transformer.se.fc.1.", "lift_splat.depth_net.camera_gain."),
        ("img_view_transformer.extra_depthnet.layers.0.0.downsample.", "lift_splat.depth_net.blocks.0.shortcut."),
        ("img_view_transformer.extra_depthnet.layers.0.", "lift_splat.depth_net.blocks."),
        ("img_view_transformer.dcn.0.", "lift_splat.depth_net.deform."),
        ("img_view_transformer.dcn.1.", "lift_splat.depth_net.norm."),
        *BEVDET4D_R50.prefixes,
    ),
)
"""With one frame or with two."""


@dataclass(frozen=True)
class ReleasedForm:
    """One way in which checkpoints of a detector are published.

    Attributes:
        weight_map: How the names correspond.
        frame: Whose axes the boxes are in: the key frame's LiDAR, or the ego vehicle.
        family: The box convention that the tensors themselves give away, and how; None where they do not.
    """

    weight_map: WeightMap
    frame: Literal["lidar", "ego"]
    family: Callable[[Mapping[str, Tensor]], tuple[BoxFamily, str] | None]


def _family_of_pillars(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    layer = weights.get("pts_voxel_encoder.pfn_layers.0.linear.weight")
    width = 0 if layer is None or layer.ndim != 2 else layer.shape[1]
    families: dict[int, BoxFamily] = {10: "old", 11: "new"}
    return (families[width], f"its pillars have {width} inputs") if width in families else None


def _family_of_bevdet(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    key = "img_view_transformer.frustum"
    return ("old", f"it holds `{key}`, as BEVDet's first code base alone does") if key in weights else None


CENTERPOINT_FORMS = (ReleasedForm(CENTERPOINT_PILLAR, "lidar", _family_of_pillars),)
BEVDET_FORMS = (ReleasedForm(BEVDET_R50, "lidar", _family_of_bevdet),)
BEVDET4D_FORMS = (ReleasedForm(BEVDET4D_R50, "lidar", _family_of_bevdet),)
BEVDEPTH_FORMS = (ReleasedForm(BEVDEPTH_R50, "lidar", _family_of_bevdet),)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of a .pth or .safetensors file on the CPU; never runs code that the file may hold.

    Raises:
        UserError: If there is no such file, or it holds no weights that can be read safely.
    """
    return weights_in(read_content(path), path)


def weights_in(content: object, path: Path) -> dict[str, Tensor]:
    """The weights in what `read_content` returned.

    Raises:
        UserError: If there are none; `path` is where it came from.
    """
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        weights = {"": None}
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise UserError(
            f"the checkpoint {path} holds no weights: expected tensors by name, or a `state_dict` of them"
        )
    return dict(weights)


def load_official(
    model: nn.Module, weights: Mapping[str, Tensor], weight_map: WeightMap, family: BoxFamily = "new"
) -> None:
    """Load a released checkpoint into one of our detectors; on any mismatch nothing is loaded.

    Args:
        model: Our detector, at the size of the checkpoint.
        weights: Their tensors by their names.
        weight_map: How the names correspond.
        family: Box convention of the checkpoint; "old" ones are folded into ours, see `fold_old_family`.

    Raises:
        UserError: If a key is missing, unexpected or has another shape.
    """
    renamed = weight_map.rename(weights)
    if family == "old":
        renamed = fold_old_family(renamed)
    if problems := mismatches(model.state_dict(), renamed):
        raise UserError(
            f"the checkpoint does not fit as {weight_map.source}; check the model's sizes and the checkpoint's "
            "origin:\n  " + "\n  ".join(problems)
        )
    model.load_state_dict(renamed)


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


def fold_old_family(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite weights of the old box convention so that their predictions are in ours; exact.

    The old head predicts sizes as w, l, h and the yaw r = -ψ - π/2, whose sine is -cos ψ and whose cosine is
    -sin ψ: rows of the last layers are exchanged, and negated for the yaw. The old pillar layer has no input
    for the offset from the pillar centre's z: its last column becomes zero.
    """
    folded = dict(weights)
    for name, value in weights.items():
        if name.endswith((".dim.1.weight", ".dim.1.bias")):
            folded[name] = value[[1, 0, 2]]
        elif name.endswith((".rot.1.weight", ".rot.1.bias")):
            folded[name] = -value[[1, 0]]
        elif name == "pillars.linear.weight":
            folded[name] = torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
    return folded


def _nearest(name: str, names: set[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1)), "")
