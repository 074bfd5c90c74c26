"""Detectors of mmdetection3d, whose taps are read through forward hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bevkd_common.config.detectors.mmdet3d import ForeignTapConfig, Mmdet3dConfig
from bevkd_common.config.wording import did_you_mean
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.samples import PADDING_LABEL, Batch, Cameras
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import from_mmdet3d
from bevkd_common.models.detector import Detections, Outputs
from bevkd_common.models.foreign_files import read_checkpoint
from bevkd_common.models.heads.center_code import BRANCHES
from bevkd_common.models.state_dicts import mismatches
from bevkd_common.models.taps import BevMap, HeadMaps, TapSpec
from bevkd_common.models.weights.maps import to_spconv2

HEAD = "head"


class Source(NamedTuple):
    """A module whose output is a tap, and which of its outputs."""

    module: str
    output: int


class Mmdet3dDetector(nn.Module):
    """A model of mmdet3d under the contract of our detectors; it is never trained.

    Taps are read by forward hooks. Where no boxes are wanted, the model is left as soon as all taps are there.

    Args:
        model: An mmdet3d `Base3DDetector`.
        needs: What it reads.
        columns: What it reads of a point.
        labels: [L] int64, our label of each of theirs; negative where the data set has no such class.
        taps: What the maps are, by tap name.
        sources: Where each is found; of "head", where the head's maps are.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        needs: DataNeeds,
        columns: Sequence[int],
        labels: Tensor,
        taps: Mapping[str, TapSpec],
        sources: Mapping[str, Source],
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.needs = needs
        self.columns = list(columns)
        self.taps = taps
        self.sources = sources
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """The head and its task heads, if the configuration describes the head; see `Detector`."""
        if HEAD not in self.sources:
            return {}
        head = self.model.get_submodule(self.sources[HEAD].module)
        return {HEAD: head, "head.task_heads": head.task_heads}

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """The taps wanted; with "head" the boxes too, as `extras`.

        Raises:
            UserError: If a module gives no map of the size that the configuration states, or boxes in other axes.
        """
        if unknown := want - self.taps.keys() - {HEAD}:
            raise ValueError(f"mmdet3d's model has no tap {sorted(unknown)}; it has {list(self.taps)}")
        if not want:
            return Outputs(taps={})
        wanted = {name: source for name, source in self.sources.items() if name in want}
        with self._captured(wanted, stop=HEAD not in want) as captured:
            found = self._predict(batch)
        maps = {name: self._map(name, captured, len(batch)) for name in wanted if name != HEAD}
        head = _head_maps(captured[HEAD]) if HEAD in wanted else []
        return Outputs(taps=maps, head=head, extras={} if found is None else self._padded(found))

    def targets(self, outputs: Outputs, batch: Batch) -> NoReturn:
        """Refuses.

        Raises:
            UserError: Always.
        """
        _not_trained()

    def losses(self, outputs: Outputs, targets: object, batch: Batch) -> NoReturn:
        """Refuses.

        Raises:
            UserError: Always.
        """
        _not_trained()

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """The boxes that mmdet3d's own decoding left, best first, in our convention."""
        detections = []
        for boxes, scores, labels in zip(
            *(outputs.extras[key] for key in ("boxes", "scores", "labels")), strict=True
        ):
            rows = torch.where(labels >= 0, scores, -1.0).argsort(descending=True, stable=True)
            rows = rows[: int((labels >= 0).sum())]
            detections.append(Detections(Boxes(boxes[rows]), scores[rows], labels[rows]))
        return detections

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module. mmdet3d would turn sparse weights around if the metadata did not say how they lie."""
        marked = OrderedDict(state_dict)
        marked._metadata = self.state_dict()._metadata  # type: ignore[attr-defined]
        return super().load_state_dict(marked, strict=strict, assign=assign)

    def _predict(self, batch: Batch) -> list[Any] | None:
        """One sample of predictions each, or nothing if the model was left before it was done."""
        _choose_algorithm(self.model, batch.device)
        data = self.model.data_preprocessor(foreign_batch(batch, self.needs, self.columns), False)
        try:
            return list(self.model(**data, mode="predict"))
        except _AllCapturedError:
            return None

    @contextmanager
    def _captured(self, sources: Mapping[str, Source], *, stop: bool) -> Iterator[dict[str, Any]]:
        """What modules return while the context is open, by tap; with `stop` the last one ends the forward pass."""
        captured: dict[str, Any] = {}

        def hook(name: str) -> Any:
            def keep(module: nn.Module, inputs: Any, output: Any) -> None:
                captured.setdefault(name, output)
                if stop and len(captured) == len(sources):
                    raise _AllCapturedError

            return keep

        handles = [
            self.model.get_submodule(source.module).register_forward_hook(hook(name))
            for name, source in sources.items()
        ]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def _map(self, name: str, captured: Mapping[str, Any], samples: int) -> Tensor:
        """A captured map [B, C, Y, X], checked.

        Raises:
            UserError: If it is not what the configuration states.
        """
        source, spec = self.sources[name], self.taps[name]
        assert isinstance(spec, BevMap)
        wanted = (samples, spec.channels, spec.grid.ny, spec.grid.nx)
        outputs = captured.get(name, ())
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if source.output < len(outputs):
            value = outputs[source.output]
            if isinstance(value, Tensor) and value.shape == wanted:
                return value
        shapes = ", ".join(
            str(tuple(one.shape)) if isinstance(one, Tensor) else type(one).__name__ for one in outputs
        )
        raise UserError(
            f"tap `{name}`: output {source.output} of the module `{source.module}` must be {wanted}, but it "
            f"returned {shapes or 'nothing'}; correct `taps.{name}` in the recipe"
        )

    def _padded(self, found: Sequence[Any]) -> dict[str, Tensor]:
        """Predictions as tensors: boxes [B, M, 9] in our convention, scores [B, M], labels [B, M], -1 for none."""
        boxes, scores, labels = [], [], []
        for sample in found:
            predicted = sample.pred_instances_3d
            kind = type(predicted.bboxes_3d).__name__
            if kind != "LiDARInstance3DBoxes":
                raise UserError(f"mmdet3d's model gives {kind}; only boxes in LiDAR axes can be used")
            boxes.append(from_mmdet3d(predicted.bboxes_3d.tensor.float()).tensor)
            scores.append(predicted.scores_3d.float())
            labels.append(self.labels[predicted.labels_3d.long()])
        return {
            "boxes": pad_sequence(boxes, batch_first=True),
            "scores": pad_sequence(scores, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=PADDING_LABEL),
        }


class _AllCapturedError(Exception):
    """Ends a forward pass of which nothing more is wanted."""


def build(config: Mmdet3dConfig, classes: tuple[str, ...]) -> Mmdet3dDetector:
    """Unpack a configuration.

    Raises:
        UserError: If mmdet3d is not installed, a file cannot be read, the weights do not fit, the model has no such
            module, or none of its classes is one of the data set.
    """
    model, names = _foreign_model(config)
    names = config.classes or names
    if names is None:
        raise UserError(f"{config.config} has no `class_names`: list the classes of its labels as `classes`")
    labels = torch.tensor([classes.index(name) if name in classes else PADDING_LABEL for name in names])
    if (labels < 0).all():
        raise UserError(f"no class of mmdet3d's model is one of the data set: {', '.join(names)}")
    if config.weights is not None:
        load_foreign(model, config.weights)
    taps: dict[str, TapSpec] = {}
    sources = {}
    for name, tap in config.taps.items():
        taps[name] = BevMap(tap.channels, tap.grid, tap.activation)
        sources[name] = _source(model, f"taps.{name}", tap)
    if config.head is not None:
        taps[HEAD] = HeadMaps(grid=config.head.grid, tasks=config.head.tasks, branches=BRANCHES)
        sources[HEAD] = _source(model, HEAD, config.head)
    clouds = frozenset({LIDAR}) if config.sweeps else frozenset()
    needs = DataNeeds(cameras=config.cameras, clouds=clouds, sweeps=config.sweeps)
    return Mmdet3dDetector(
        model, needs=needs, columns=config.point_columns, labels=labels, taps=taps, sources=sources
    )


def load_foreign(model: nn.Module, path: Path) -> None:
    """Load a checkpoint of mmengine strictly, running nothing that it may hold; on a mismatch nothing is loaded.

    Raises:
        UserError: If it cannot be read safely, or does not fit.
    """
    wanted = model.state_dict()
    weights = to_spconv2(read_checkpoint(path), wanted)
    if problems := mismatches(wanted, weights):
        raise UserError(f"{path} does not fit the model of mmdet3d:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(weights[name])


def foreign_batch(batch: Batch, needs: DataNeeds, columns: Sequence[int]) -> dict[str, Any]:
    """A batch as mmdet3d's loaders make it, after all augmentation.

    Each sample's matrices lead from the LiDAR axes of the batch to the pixels of its images, so that what augments
    either is part of them, and the matrices that mmdet3d keeps for augmentations are identities.
    """
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

    inputs: dict[str, Any] = {}
    metas: list[dict[str, Any]] = [{"box_type_3d": LiDARInstance3DBoxes} for _ in range(len(batch))]
    if needs.clouds:
        # The model may write to what it is given.
        inputs["points"] = [cloud[:, list(columns)].clone() for cloud in batch.cloud(LIDAR).split()]
    if needs.cameras:
        assert batch.cameras is not None
        inputs["img"] = list(batch.cameras.images.flip(2))
        for meta, matrices in zip(metas, camera_metas(batch.cameras), strict=True):
            meta |= matrices
    return {"inputs": inputs, "data_samples": [Det3DDataSample(metainfo=meta) for meta in metas]}


def camera_metas(cameras: Cameras) -> list[dict[str, Any]]:
    """Return the metadata of the images that mmdet3d's models read, one dictionary per sample."""
    samples, views, _, height, width = cameras.images.shape
    image_T_cam = torch.eye(4, dtype=torch.float64, device=cameras.images.device).repeat(samples, views, 1, 1)
    image_T_cam[..., :3, :3] = cameras.image_aug.double() @ cameras.intrinsics.double()
    cam_T_lidar = torch.linalg.inv(cameras.lidar_T_cam.double())
    matrices = {
        "lidar2img": image_T_cam @ cam_T_lidar,
        "lidar2cam": cam_T_lidar,
        "cam2lidar": cameras.lidar_T_cam,
        "cam2img": image_T_cam,
        "ori_cam2img": image_T_cam,
        "ori_lidar2img": image_T_cam @ cam_T_lidar,
        "img_aug_matrix": torch.eye(4).expand(samples, views, 4, 4),
    }
    arrays = {name: value.float().cpu().numpy() for name, value in matrices.items()}
    shape = (height, width, 3)
    common = {
        "lidar_aug_matrix": torch.eye(4).numpy(),
        "img_shape": [shape] * views,
        "ori_shape": [shape] * views,
        "pad_shape": [shape] * views,
        "num_views": views,
        "scale_factor": 1.0,
        "flip": False,
    }
    return [common | {name: value[sample] for name, value in arrays.items()} for sample in range(samples)]


def _foreign_model(config: Mmdet3dConfig) -> tuple[nn.Module, tuple[str, ...] | None]:
    """The model of a configuration file with random weights, and the file's class names."""
    try:
        import mmdet3d.models  # noqa: F401 - registers what the file names
        from mmdet3d.registry import MODELS
        from mmengine.config import Config as ForeignConfig
        from mmengine.registry import init_default_scope
    except ImportError as error:
        raise UserError(
            f"the detector `mmdet3d` needs mmdetection3d, which this environment does not have ({error}): make one "
            "that has it with `make oracle`, and run this command in it, as .oracle/bin/bevkd"
        ) from None
    if not config.config.is_file():
        raise UserError(f"there is no mmdetection3d configuration {config.config}; check the path")
    try:
        file = ForeignConfig.fromfile(config.config)
        init_default_scope(file.get("default_scope", "mmdet3d"))
        model = MODELS.build(file.model)
    except Exception as error:  # the file is a program, and may fail in any way
        reason = f"{type(error).__name__} {error}".strip().partition("\n")[0]
        raise UserError(f"mmdetection3d cannot build a model from {config.config}: {reason}") from error
    names = file.get("class_names")
    return model, None if names is None else tuple(names)


def _source(model: nn.Module, key: str, tap: Any) -> Source:
    names = dict(model.named_modules())
    if tap.module not in names:
        raise UserError(f"`{key}`: mmdet3d's model has no module `{tap.module}`{did_you_mean(tap.module, names)}")
    return Source(tap.module, tap.output if isinstance(tap, ForeignTapConfig) else 0)


def _head_maps(output: Any) -> list[dict[str, Tensor]]:
    """The maps of mmdet3d's `CenterHead`, which lists one dictionary a level for each task; there is one level."""
    names = (*(branch.name for branch in BRANCHES), "heatmap")
    return [{name: task[0][name] for name in names} for task in output]


def _choose_algorithm(model: nn.Module, device: torch.device) -> None:
    """Select the one algorithm that spconv has on a CPU."""
    sparse: list[Any] = [module for module in model.modules() if hasattr(module, "algo")]
    if sparse and device.type == "cpu":
        from spconv.core import ConvAlgo

        for layer in sparse:
            layer.algo = ConvAlgo.Native


def _not_trained() -> NoReturn:
    raise UserError("a detector of the kind `mmdet3d` is not trained here; it can only be a teacher")
