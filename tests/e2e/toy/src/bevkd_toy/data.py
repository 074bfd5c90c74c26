"""One point cloud and two boxes a sample, without cameras, poses, times or scenes; and average precision."""

import hashlib
from zipfile import BadZipFile

import numpy as np
import torch
from bevkd_common.config.datasets.reading import BevAugmentationConfig, ReadingConfig
from bevkd_common.data.array_file import ArrayFileError, map_arrays, write_arrays
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.dataset import DataCheck, Picture
from bevkd_common.data.frames import Annotations, CloudLayout, Frame, FrameReader, Sweep
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.samples import collate
from bevkd_common.errors import UserError
from bevkd_common.evaluation.results import COUNT, FRACTION, Counts, Metric, Results, Table
from bevkd_common.geometry.boxes import points_in_boxes

SIZES = np.array([[1.8, 0.9, 1.0], [0.6, 0.6, 1.6]])
MIRRORS = BevAugmentationConfig(rotation=(0.0, 0.0), scale=(1.0, 1.0), flip_x=0.0)
READING = ReadingConfig(bev_augmentation=MIRRORS, point_range=(-4.0, -4.0, -1.0, 4.0, 4.0, 3.0))


class ToyReader(FrameReader):
    def __init__(self, file):
        self.arrays = map_arrays(file).arrays
        self.layouts = {"lidar": CloudLayout(("x", "y", "z"))}
        self.tokens = self.scenes = [f"{file.stem}-{index}" for index in range(len(self.arrays["labels"]))]

    def annotations(self, index):
        return Annotations(self.arrays["boxes"][index], self.arrays["labels"][index])

    def read(self, index, draws):
        return Frame({"lidar": [Sweep(self.arrays["points"][index])]})


class ToyData:
    name, axes, classes, cameras, synthetic = "toy_data", "x forward, y left, z up", ("van", "post"), (), True

    def __init__(self, folder):
        self.folder = folder

    def prepare(self, needs, reporter):
        pass

    def fingerprint(self, needs):
        files = (self.folder / f"{split}.safetensors" for split in ("train", "val"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def description(self, needs):
        return f"Generated point clouds, {self.folder.name}."

    def source(self, split, needs):
        return FrameSource(ToyReader(self.folder / f"{split}.safetensors"), READING, needs)


def draw(rng):
    """Points on the ground and inside two boxes of unknown velocity."""
    labels, yaw = rng.integers(0, 2, 2), rng.uniform(-0.5, 0.5, 2)
    size = SIZES[labels] * rng.uniform(0.9, 1.1, (2, 1))
    center = np.column_stack([rng.uniform(-3, 3, 2), rng.uniform(1, 3, 2) * (-1, 1), size[:, 2] / 2])
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]).transpose(2, 0, 1)
    inside = rng.uniform(-0.5, 0.5, (2, 40, 3)) * size[:, None]
    inside[..., :2] = inside[..., :2] @ turn
    ground = rng.uniform((-4, -4, -0.1), (4, 4, 0.1), (60, 3))
    points = np.concatenate([ground, *(center[:, None] + inside)]).astype(np.float32)
    return {"points": points, "boxes": np.column_stack([center, size, yaw, [[np.nan] * 2] * 2]), "labels": labels}


def build(config, root, progress=None):
    folder = root / f"toy-{config.seed}-{config.samples}"
    for stream, file in enumerate(folder / f"{split}.safetensors" for split in ("train", "val")):
        try:
            map_arrays(file)
        except ArrayFileError:  # absent or damaged
            samples = [draw(np.random.default_rng([config.seed, stream, row])) for row in range(config.samples)]
            arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
            write_arrays(file, config.model_dump(), arrays)
    return ToyData(folder)


def check(root, version, *, samples, reporter):
    source = ToyData(root).source("val", DataNeeds(clouds=frozenset({LIDAR})))
    loaded = [source.load(index, seed=None) for index in range(min(samples, len(source)))]
    hits = [points_in_boxes(one.clouds[LIDAR].points[:, :3], one.boxes).sum(dim=1) for one in loaded]
    boxes, empty = sum(map(len, hits)), sum(int((hit == 0).sum()) for hit in hits)
    findings = [f"{empty} of {boxes} boxes hold no point: compare the axes"] if empty else []
    pictures = [Picture("plain", collate([one])) for one in loaded[:3]]
    return DataCheck([f"{len(loaded)} samples, {boxes} boxes"], findings, pictures, (), (-4.0, 4.0, -4.0, 4.0))


class ToyEvidence:
    """Detections [D, 4]: sample, label, score, hit; numbers of boxes [G, K] of each sample and class."""

    def __init__(self, groups, detections, boxes):
        self.groups, self.detections, self.boxes = tuple(groups), detections, boxes

    def precisions(self, weights):
        """Average precisions [N, K]: the mean over all boxes of the precision at each hit."""
        ranked = self.detections[np.argsort(-self.detections[:, 2], kind="stable")]
        precisions = []
        for label, boxes in enumerate(self.boxes.T):
            sample, _, _, hit = ranked[ranked[:, 1] == label].T
            counted = weights[:, sample.astype(int)]
            precision = np.cumsum(counted * hit, axis=1) / np.maximum(np.cumsum(counted, axis=1), 1)
            precisions.append((precision * counted * hit).sum(axis=1) / np.maximum(weights @ boxes, 1))
        return np.column_stack(precisions)

    def headlines(self, weights):
        return {"AP": self.precisions(weights).mean(axis=1)}

    def save(self, path):
        with path.open("wb") as file:
            np.savez(file, groups=self.groups, detections=self.detections, boxes=self.boxes)


class ToyEvaluator:
    def __init__(self, config, dataset, split):
        self.classes, self.groups, self.detections, self.boxes = dataset.classes, [], [], []

    def update(self, batch, detections):
        for row, found in enumerate(detections):
            labels = batch.labels[row, batch.valid[row]]
            distance = torch.cdist(found.boxes.centers[:, :2], batch.boxes.centers[row, batch.valid[row], :2])
            free = (distance < 1.0) & (found.labels[:, None] == labels)
            for label, score, hits in zip(found.labels.tolist(), found.scores.tolist(), free, strict=True):
                self.detections.append((len(self.groups), label, score, bool(hits.any())))
                free[:, hits & (hits.cumsum(0) == 1)] = False
            self.groups.append(batch.tokens[row])
            self.boxes.append(labels.bincount(minlength=len(self.classes)).tolist())

    def compute(self, needs):
        evidence = self.evidence()
        precisions, boxes = evidence.precisions(np.ones((1, len(self.groups))))[0], evidence.boxes.sum(axis=0)
        names, units = ("AP", "boxes"), (FRACTION, COUNT)
        values = tuple(zip(precisions.tolist(), boxes.tolist(), strict=True))
        return Results(
            protocol="Mean over classes of the average precision; a hit is within 1 m of a box of its class.",
            primary="AP",
            headline={"AP": Metric(value=precisions.mean(), unit=FRACTION, higher_is_better=True)},
            tables=(Table(title="By class", rows=self.classes, columns=names, units=units, values=values),),
            counts=Counts(samples=len(self.groups), predictions=len(self.detections), ground_truths=boxes.sum()),
            groups="samples",
        )

    def evidence(self):
        return ToyEvidence(self.groups, np.array(self.detections, float).reshape(-1, 4), np.array(self.boxes))

    def load_evidence(self, path):
        try:
            with np.load(path) as file:
                return ToyEvidence(file["groups"].tolist(), file["detections"], file["boxes"])
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"{path} cannot be read: {error}; evaluate again") from error

    def findings(self, results):
        return [] if results.score else ["No detection is within 1 m of a box of its class: compare the axes."]
