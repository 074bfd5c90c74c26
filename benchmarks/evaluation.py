"""Time our nuScenes metric against nuscenes-devkit's on the same generated predictions.

    python benchmarks/evaluation.py --samples 40

Compares matching and accumulation over all classes and thresholds; reading files is left out on both sides, the
range filter is part of ours. Times are CPU seconds, so that a busy machine does not decide. Checks that both give
the same scores. The devkit takes half an hour for all of nuScenes val; `--ours-only` leaves it out.
"""

import argparse
import json
import platform
import time
import tracemalloc
from pathlib import Path

import numpy as np
from bevkd_common.evaluation.bootstrap import paired_bootstrap
from bevkd_common.evaluation.nuscenes.metric import (
    ATTRIBUTES,
    CLASSES,
    Cuboids,
    DetectionArrays,
    NuScenesEvaluator,
    NuScenesMetricConfig,
    TruthArrays,
)

# Thousands of annotated boxes in nuScenes trainval, in label order; the devkit's time grows with same-class pairs.
CLASS_SIZES = np.array([493, 89, 15, 16, 25, 152, 13, 12, 222, 98])
SAMPLES_PER_SCENE = 40
RESAMPLES = 1000


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40, help="key frames (nuScenes val has 6019)")
    parser.add_argument("--predictions", type=int, default=500, help="per key frame")
    parser.add_argument("--truths", type=int, default=31, help="annotated boxes per key frame")
    parser.add_argument("--ours-only", action="store_true", help="do not run the devkit")
    parser.add_argument("--output", type=Path, default=Path("evaluation-benchmark.json"))
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    samples = [_sample(rng, number, arguments.predictions, arguments.truths) for number in range(arguments.samples)]
    figures = {
        "samples": arguments.samples,
        "predictions_per_sample": arguments.predictions,
        "truths_per_sample": arguments.truths,
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
    }
    figures |= _measure_ours(samples)
    if not arguments.ours_only:
        figures |= _measure_devkit(samples)
        figures["devkit_over_ours"] = figures["devkit_s"] / figures["ours_s"]
        if abs(figures["devkit_nds"] - figures["nds"]) > 1e-9:
            raise SystemExit(f"NDS differs: ours {figures['nds']}, devkit {figures['devkit_nds']}")
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def _sample(
    rng: np.random.Generator, number: int, predictions: int, truths: int
) -> tuple[str, DetectionArrays, TruthArrays]:
    """Two predictions in five lie near an annotated box; all lie within the ranges of their classes."""
    labels = rng.choice(len(CLASSES), truths, p=CLASS_SIZES / CLASS_SIZES.sum())
    reach = NuScenesMetricConfig().ranges
    centre = rng.uniform(-0.6, 0.6, (truths, 2)) * reach[labels, None]
    source = rng.integers(0, truths, predictions)
    found_labels = labels[source]
    near = rng.random((predictions, 1)) < 0.4
    anywhere = rng.uniform(-0.6, 0.6, (predictions, 2)) * reach[found_labels, None]
    found = np.where(near, centre[source] + rng.normal(0, 1, (predictions, 2)), anywhere)
    truth = TruthArrays(
        cuboids=_cuboids(rng, centre),
        labels=labels,
        velocity=rng.normal(0, 2, (truths, 2)),
        attributes=rng.integers(0, len(ATTRIBUTES), truths),
        num_points=np.ones(truths, np.int64),
        scene_token=f"scene-{number // SAMPLES_PER_SCENE}",
        ego_translation=np.zeros(3),
        bicycle_racks=Cuboids.empty(),
    )
    detections = DetectionArrays(
        cuboids=_cuboids(rng, found),
        labels=found_labels,
        velocity=rng.normal(0, 2, (predictions, 2)),
        attributes=rng.integers(0, len(ATTRIBUTES), predictions),
        scores=rng.random(predictions),
    )
    return f"sample-{number}", detections, truth


def _cuboids(rng: np.random.Generator, centre: np.ndarray) -> Cuboids:
    count = len(centre)
    yaw = rng.uniform(-np.pi, np.pi, count) / 2
    rotation = np.stack([np.cos(yaw), np.zeros(count), np.zeros(count), np.sin(yaw)], axis=-1)
    return Cuboids(np.c_[centre, np.zeros(count)], *rng.uniform(0.5, 6, (3, count)), rotation)


def _measure_ours(samples: list[tuple[str, DetectionArrays, TruthArrays]]) -> dict[str, float]:
    evaluator = NuScenesEvaluator()
    start = time.process_time()
    for sample in samples:
        evaluator.update(*sample)
    matched = time.process_time()
    results = evaluator.compute()
    done = time.process_time()
    figures = {
        "ours_s": done - start,
        "ours_matching_s": matched - start,
        "ours_accumulation_s": done - matched,
        "nds": results.headline["NDS"].value,
    }
    figures |= _memory(samples)
    table = evaluator.matches()
    if len(table.groups) > 1:
        start = time.process_time()
        paired_bootstrap({"ours": table}, RESAMPLES)
        figures[f"bootstrap_of_{RESAMPLES}_s"] = time.process_time() - start
    return figures


def _memory(samples: list[tuple[str, DetectionArrays, TruthArrays]]) -> dict[str, float]:
    """What an evaluation keeps when everything is matched and scored, and its peak above the predictions."""
    tracemalloc.start()
    evaluator = NuScenesEvaluator()
    for sample in samples:
        evaluator.update(*sample)
    predictions = sum(len(predictions) for _, predictions, _ in samples)
    matched = tracemalloc.get_traced_memory()[0]
    evaluator.compute()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "bytes_kept_per_prediction": matched / predictions,
        "bytes_kept_per_prediction_scored": kept / predictions,
        "peak_mb_above_predictions": peak / 1e6,
    }


def _measure_devkit(samples: list[tuple[str, DetectionArrays, TruthArrays]]) -> dict[str, float]:
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    def boxes(side: int) -> EvalBoxes:
        every = EvalBoxes()
        for sample in samples:
            token, arrays = sample[0], sample[side]
            cuboids = arrays.cuboids
            size = np.stack([cuboids.width, cuboids.length, cuboids.height], axis=-1)
            scores = arrays.scores if isinstance(arrays, DetectionArrays) else np.full(len(arrays), -1.0)
            every.add_boxes(
                token,
                [
                    DetectionBox(
                        sample_token=token,
                        translation=tuple(cuboids.translation[i].tolist()),
                        size=tuple(size[i].tolist()),
                        rotation=tuple(cuboids.rotation[i].tolist()),
                        velocity=tuple(arrays.velocity[i].tolist()),
                        detection_name=CLASSES[arrays.labels[i]],
                        detection_score=float(scores[i]),
                        attribute_name=ATTRIBUTES[arrays.attributes[i]],
                    )
                    for i in range(len(arrays))
                ],
            )
        return every

    run = DetectionEval.__new__(DetectionEval)  # its constructor wants a whole data set
    run.cfg, run.verbose = config_factory("detection_cvpr_2019"), False
    run.pred_boxes, run.gt_boxes = boxes(1), boxes(2)
    start = time.process_time()
    metrics, _ = run.evaluate()
    return {"devkit_s": time.process_time() - start, "devkit_nds": metrics.nd_score}


if __name__ == "__main__":
    main()
