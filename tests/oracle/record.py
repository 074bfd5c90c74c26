"""Record what mmdet3d's CenterPoint computes, in the environment that `environment.sh` makes.

    python tests/oracle/record.py            # compute again, and compare with the recorded files
    python tests/oracle/record.py --write    # write them

Two small models, over pillars and over voxels. Weights, points and boxes follow from seeds, names and shapes, so
that the files hold results alone: head maps, targets, losses, detections, and what one training step would do.
"""

import argparse
import json
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SEED = 11
SAMPLES = 2
TOLERANCE = 1e-5
"""Largest difference between two machines' recordings."""
TASKS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
BRANCHES = ("reg", "height", "dim", "rot", "vel", "heatmap")
# Longer along x than along y, so that no transposed map passes; caps small enough to be reached.
PILLARS = {
    "range": (-9.6, -6.4, -5.0, 9.6, 6.4, 3.0),
    "size": (0.2, 0.2, 8.0),
    "points": 5,
    "voxels": 1200,
    "spread": 0.5,
}
VOXELS = {
    "range": (-6.4, -3.2, -5.0, 6.4, 3.2, 3.0),
    "size": (0.1, 0.1, 0.2),
    "points": 3,
    "voxels": 1200,
    "spread": 0.1,
}
FIRST_NORMS = ("pts_voxel_encoder.pfn_layers.0.norm", "pts_middle_encoder.conv_input.1")


def values(name: str, shape: Sequence[int]) -> np.ndarray:
    """The numbers of a tensor; layers keep the size of their signals."""
    draw = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return np.array(7)
    if name.endswith("running_var"):
        # The first norm sees metres.
        return draw.uniform(0.5, 1.5, shape) * (100.0 if name.startswith(FIRST_NORMS) else 1.0)
    if len(shape) == 1:
        return draw.uniform(0.5, 1.5, shape) if name.endswith("weight") else draw.normal(0.0, 0.1, shape)
    return draw.normal(0.0, math.sqrt(2.0 * shape[0] / math.prod(shape)), shape)


def scene(geometry: Mapping[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Of each sample points [P, 5], boxes [M, 9] in our convention, and labels [M].

    One box reaches less than a cell over the lower border, one lies outside, and large ones have wide Gaussians.
    """
    draw = np.random.default_rng(SEED)
    low, high = np.array(geometry["range"][:3]), np.array(geometry["range"][3:])
    clouds, boxes, labels = [], [], []
    for _ in range(SAMPLES):
        box = np.zeros((14, 9))
        box[:, :3] = draw.uniform(low * 0.95, high * 0.95, (14, 3)) * [1, 1, 0.3]
        box[:, 3:6] = draw.uniform([0.4, 0.4, 0.5], [12.0, 4.0, 3.0], (14, 3))
        box[:, 6] = draw.uniform(-math.pi, math.pi, 14)
        box[:, 7:] = draw.normal(0.0, 3.0, (14, 2))
        box[0, 0] = low[0] - 0.3
        box[1, 1] = high[1] + 0.5
        label = np.concatenate([np.arange(10), draw.integers(0, 10, 4)])
        order = draw.permutation(14)
        near = box[draw.integers(0, 14, 1500), :3] + draw.normal(0.0, geometry["spread"], (1500, 3))
        far = draw.uniform(low * 1.1, high * 1.1, (1500, 3))
        xyz = draw.permutation(np.concatenate([near, far]))
        rest = np.stack([draw.uniform(0.0, 1.0, 3000), draw.integers(0, 10, 3000) * 0.05], axis=1)
        clouds.append(np.concatenate([xyz, rest], axis=1).astype(np.float32))
        boxes.append(box[order].astype(np.float32))
        labels.append(label[order])
    return clouds, boxes, labels


def pillar_model() -> dict[str, Any]:
    """The 0.2 m model with fewer channels and a smaller range."""
    norm = {"type": "BN", "eps": 1e-3, "momentum": 0.01}
    parts = {
        "pts_voxel_encoder": {
            "type": "PillarFeatureNet",
            "in_channels": 5,
            "feat_channels": [16],
            "with_distance": False,
            "voxel_size": PILLARS["size"],
            "point_cloud_range": PILLARS["range"],
            "norm_cfg": {**norm, "type": "BN1d"},
            "legacy": False,
        },
        "pts_middle_encoder": {"type": "PointPillarsScatter", "in_channels": 16, "output_shape": (64, 96)},
        "pts_backbone": {
            "type": "SECOND",
            "in_channels": 16,
            "out_channels": [16, 24, 32],
            "layer_nums": [3, 5, 5],
            "layer_strides": [2, 2, 2],
            "norm_cfg": norm,
            "conv_cfg": {"type": "Conv2d", "bias": False},
        },
        "pts_neck": {
            "type": "SECONDFPN",
            "in_channels": [16, 24, 32],
            "out_channels": [24, 16, 8],
            "upsample_strides": [0.5, 1, 2],
            "norm_cfg": norm,
            "upsample_cfg": {"type": "deconv", "bias": False},
            "use_conv_for_no_stride": True,
        },
    }
    return _model(PILLARS, (96, 64, 1), 4, 48, parts)


def voxel_model() -> dict[str, Any]:
    """The 0.1 m model with fewer channels and a smaller range."""
    norm = {"type": "BN", "eps": 1e-3, "momentum": 0.01}
    parts = {
        "pts_voxel_encoder": {"type": "HardSimpleVFE", "num_features": 5},
        "pts_middle_encoder": {
            "type": "SparseEncoder",
            "in_channels": 5,
            "sparse_shape": [41, 64, 128],
            "base_channels": 8,
            "output_channels": 24,
            "order": ("conv", "norm", "act"),
            "encoder_channels": ((8, 8, 12), (12, 12, 16), (16, 16, 24), (24, 24)),
            "encoder_paddings": ((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0)),
            "block_type": "basicblock",
        },
        "pts_backbone": {
            "type": "SECOND",
            "in_channels": 48,
            "out_channels": [24, 32],
            "layer_nums": [5, 5],
            "layer_strides": [1, 2],
            "norm_cfg": norm,
            "conv_cfg": {"type": "Conv2d", "bias": False},
        },
        "pts_neck": {
            "type": "SECONDFPN",
            "in_channels": [24, 32],
            "out_channels": [24, 16],
            "upsample_strides": [1, 2],
            "norm_cfg": norm,
            "upsample_cfg": {"type": "deconv", "bias": False},
            "use_conv_for_no_stride": True,
        },
    }
    return _model(VOXELS, (128, 64, 40), 8, 40, parts)


MODELS = {"pillar": (pillar_model, PILLARS), "voxel": (voxel_model, VOXELS)}


def _model(
    geometry: Mapping[str, Any], grid: Sequence[int], stride: int, channels: int, parts: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole model: what both have in common around the parts in which they differ."""
    reach = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
    size, extent = list(geometry["size"]), list(geometry["range"])
    return {
        "type": "CenterPoint",
        "data_preprocessor": {
            "type": "Det3DDataPreprocessor",
            "voxel": True,
            "voxel_layer": {
                "max_num_points": geometry["points"],
                "max_voxels": (geometry["voxels"], geometry["voxels"]),
                "voxel_size": size,
                "point_cloud_range": extent,
            },
        },
        **parts,
        "pts_bbox_head": {
            "type": "CenterHead",
            "in_channels": channels,
            "tasks": [{"num_class": len(task), "class_names": list(task)} for task in TASKS],
            "common_heads": {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)},
            "share_conv_channel": 16,
            "bbox_coder": {
                "type": "CenterPointBBoxCoder",
                "pc_range": extent[:2],
                "post_center_range": reach,
                "max_num": 100,
                "score_threshold": 0.1,
                "out_size_factor": stride,
                "voxel_size": size[:2],
                "code_size": 9,
            },
            "separate_head": {"type": "SeparateHead", "init_bias": -2.19, "final_kernel": 3, "head_conv": 16},
            "loss_cls": {"type": "mmdet.GaussianFocalLoss", "reduction": "mean"},
            "loss_bbox": {"type": "mmdet.L1Loss", "reduction": "mean", "loss_weight": 0.25},
            "norm_bbox": True,
        },
        "train_cfg": {
            "pts": {
                "point_cloud_range": extent,
                "grid_size": list(grid),
                "voxel_size": size,
                "out_size_factor": stride,
                "dense_reg": 1,
                "gaussian_overlap": 0.1,
                "max_objs": 500,
                "min_radius": 2,
                "code_weights": [1.0] * 8 + [0.2] * 2,
            }
        },
        "test_cfg": {
            "pts": {
                "post_center_limit_range": reach,
                "max_per_img": 500,
                "max_pool_nms": False,
                "min_radius": [4, 12, 10, 1, 0.85, 0.175],
                "score_threshold": 0.1,
                "out_size_factor": stride,
                "voxel_size": size[:2],
                "nms_type": "circle",
                "pre_max_size": 1000,
                "post_max_size": 83,
                "nms_thr": 0.2,
            }
        },
    }


def build(config: Mapping[str, Any]) -> Any:
    """The model of a configuration with the weights of `values`, in eval mode."""
    import mmdet3d.models  # noqa: F401 - registers what the configuration names
    import torch
    from mmdet3d.registry import MODELS as REGISTRY
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet3d")
    model = REGISTRY.build(Config({"model": config}).model)
    with torch.no_grad():
        # In place: mmdet3d's loader turns sparse weights around whose file does not say how they lie.
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))
    return on_cpu(model).eval()


def on_cpu(model: Any) -> Any:
    """Sparse convolutions that run without a GPU; spconv's default algorithm does not."""
    from spconv.core import ConvAlgo
    from spconv.pytorch.conv import SparseConvolution

    for module in model.modules():
        if isinstance(module, SparseConvolution):
            module.algo = ConvAlgo.Native
    return model


def annotated(points: Sequence[np.ndarray], boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Any:
    """A batch as mmdet3d's loader makes it."""
    import torch
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    samples = []
    for box, label in zip(boxes, labels, strict=True):
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        # Given by their gravity centres; mmdet3d keeps the centre of the bottom.
        found = LiDARInstance3DBoxes(torch.from_numpy(box), box_dim=9, origin=(0.5, 0.5, 0.5))
        sample.gt_instances_3d = InstanceData(bboxes_3d=found, labels_3d=torch.from_numpy(label))
        samples.append(sample)
    return {"inputs": {"points": [torch.from_numpy(cloud) for cloud in points]}, "data_samples": samples}


def record(name: str) -> dict[str, np.ndarray]:
    """All that is kept of one model."""
    import torch

    config, geometry = MODELS[name]
    model = build(config())
    kept: dict[str, Any] = {}
    batch = annotated(*scene(geometry))
    annotations = [sample.gt_instances_3d for sample in batch["data_samples"]]
    with torch.no_grad():
        data = model.data_preprocessor(batch, False)
        metas = [sample.metainfo for sample in data["data_samples"]]
        features = model.extract_feat(data["inputs"], metas)[1]
        maps = model.pts_bbox_head(features)
        targets = model.pts_bbox_head.get_targets(annotations)
        for task, prediction in enumerate(maps):
            kept |= {f"map/{task}/{branch}": prediction[0][branch] for branch in BRANCHES}
            for part, value in zip(("heatmaps", "regression", "indices", "mask"), targets, strict=True):
                kept[f"target/{task}/{part}"] = value[task]
        for nms in ("circle", "rotate"):
            model.pts_bbox_head.test_cfg["nms_type"] = nms
            for sample, found in enumerate(model.pts_bbox_head.predict(features, data["data_samples"])):
                kept[f"detection/{nms}/{sample}/boxes"] = found.bboxes_3d.tensor
                kept[f"detection/{nms}/{sample}/scores"] = found.scores_3d
                kept[f"detection/{nms}/{sample}/labels"] = found.labels_3d
        losses = model.pts_bbox_head.loss(features, data["data_samples"])
        kept |= {f"loss/{term}": value for term, value in losses.items()}

    # In double precision: gradients of so deep a random network are otherwise no more exact than 1e-2.
    model.train().double()
    data = model.data_preprocessor(annotated(*scene(geometry)), True)
    voxels = data["inputs"]["voxels"]
    voxels["voxels"] = voxels["voxels"].double()
    losses = model.loss(data["inputs"], data["data_samples"])
    sum(losses.values()).backward()
    kept |= {f"train/loss/{term}": value.detach() for term, value in losses.items()}
    kept["train/gradients"] = torch.stack([p.grad.norm() for _, p in model.named_parameters()])
    kept["train/statistics"] = torch.cat([value for key, value in model.state_dict().items() if "running" in key])
    about = {
        "versions": {package: version(package) for package in ("mmdet3d", "mmdet", "mmcv", "mmengine", "torch")},
        "shapes": {key: list(value.shape) for key, value in model.state_dict().items()},
        "parameters": [key for key, _ in model.named_parameters()],
    }
    return {key: value.numpy() for key, value in kept.items()} | {"about": np.array(json.dumps(about))}


def differences(found: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray]) -> list[str]:
    """One line for each array in which two recordings differ."""
    lines = [f"{key} is in one of them alone" for key in sorted(found.keys() ^ recorded.keys())]
    for key in sorted((found.keys() & recorded.keys()) - {"about"}):
        one, other = found[key], recorded[key]
        if one.shape != other.shape:
            lines.append(f"{key} is {one.shape}, recorded {other.shape}")
        elif not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            lines.append(f"{key} differs by {np.abs(one.astype(float) - other).max():.2g}")
    return lines


def main() -> int:
    """Write or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files, instead of comparing with them")
    arguments = parser.parse_args()
    failed = False
    for name in MODELS:
        path = GOLDEN / f"centerpoint_{name}.npz"
        found = record(name)
        if arguments.write:
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **found)
            print(f"{path.name}: {len(found)} arrays, {path.stat().st_size} bytes")
            continue
        with np.load(path) as recorded:
            lines = differences(found, dict(recorded))
        failed |= bool(lines)
        print(f"{path.name}: {len(found)} arrays " + ("as recorded" if not lines else "\n  " + "\n  ".join(lines)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
