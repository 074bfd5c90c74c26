"""Clusters of points around one object a sample, and how often the best guess hits it."""

import json

import numpy as np
from bevkd_common.config.datasets.reading import ReadingConfig
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.frames import Annotations, CloudLayout, Frame, FrameReader, Sweep
from bevkd_common.evaluation.results import FRACTION, Counts, Metric, Results


class ToyReader(FrameReader):
    def __init__(self, seed, samples, split):
        self.seed, self.split = seed, split
        self.layouts = {"lidar": CloudLayout(("x", "y", "z", "intensity", "age"))}
        self.tokens = tuple(f"{split}-{index}" for index in range(samples))
        self.scenes = tuple(f"{split}-scene-{index // 3}" for index in range(samples))

    def annotations(self, index):
        return Annotations(np.array([[*self.cluster(index)[0], 0, 1, 1, 1, 0, 0, 0]]), np.zeros(1, np.int64))

    def read(self, index, draws):
        return Frame({"lidar": [Sweep(self.cluster(index)[1])]})

    def cluster(self, index):
        rng = np.random.default_rng([self.seed, index, self.split == "val"])
        center = rng.uniform(-3, 3, 2)
        points = np.zeros((60, 5), np.float32)
        points[:, :2] = rng.uniform(-4, 4, (60, 2))
        points[:40, :2] = center + rng.normal(0, 0.2, (40, 2))
        return center, points


class ToyData:
    name, axes, classes, cameras, synthetic = "toy_data", "x right, y forward, z up", ("thing",), (), True

    def __init__(self, config):
        self.config = config

    def prepare(self, needs, reporter):
        pass

    def fingerprint(self, needs):
        return f"toy-{self.config.seed}-{self.config.samples}"

    def description(self, needs):
        return "Toy clusters."

    def source(self, split, needs):
        reader = ToyReader(self.config.seed, self.config.samples, split)
        return FrameSource(reader, ReadingConfig(bev_augmentation=None), needs)


class ToyEvidence:
    def __init__(self, groups, hits):
        self.groups, self.hits = tuple(groups), np.asarray(hits, float)

    def headlines(self, weights):
        return {"hit rate": weights @ self.hits / weights.sum(axis=1)}

    def save(self, path):
        path.write_text(json.dumps([self.groups, self.hits.tolist()]))


class ToyEvaluator:
    def __init__(self):
        self.hits = {}

    def update(self, batch, detections):
        for row, found in enumerate(detections):
            distance = (found.boxes.tensor[0, :2] - batch.boxes.tensor[row, 0, :2]).norm()
            self.hits.setdefault(batch.scenes[row], []).append(float(distance < 1.0))

    def compute(self, needs):
        rate = self.evidence().headlines(np.ones((1, len(self.hits))))["hit rate"].item()
        samples = sum(map(len, self.hits.values()))
        return Results(
            protocol="Share of samples whose best guess is nearer than a metre",
            primary="hit rate",
            headline={"hit rate": Metric(value=rate, unit=FRACTION, higher_is_better=True)},
            counts=Counts(samples=samples, predictions=samples, ground_truths=samples),
            groups="scenes",
        )

    def evidence(self):
        return ToyEvidence(self.hits, [np.mean(hits) for hits in self.hits.values()])

    def load_evidence(self, path):
        return ToyEvidence(*json.loads(path.read_text()))

    def findings(self, results):
        return ["Toy scores prove nothing."]


def build(config, root, progress=None):
    return ToyData(config)


def build_evaluator(config, dataset, split):
    return ToyEvaluator()
