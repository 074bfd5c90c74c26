"""nuScenes scores that point to a mistake outside the model."""

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.evaluation.nuscenes.metric import ERRORS_BY_CLASS
from bevkd_common.evaluation.results import Results

# Half a turn of uniform error averages pi / 2; swapped width and length of a car leave about 0.7 of scale error.
SWAPPED_SIZE_ERROR = 0.6
TURNED_ORIENTATION_ERROR = 1.3
BLIND_VELOCITY_ERROR = (0.9, 1.1)
PRACTICALLY_ZERO = 0.001
MOVING_CLASSES = tuple(name for name in CLASSES if name not in ("traffic_cone", "barrier"))
"""Classes whose velocity errors the metric averages."""


def findings(results: Results) -> list[str]:
    """Return one sentence for each likely cause of an implausible nuScenes score.

    Metrics without a value are not checked.
    """
    if results.counts.ground_truths == 0:
        return [
            "No ground-truth box is left to score: the split or the class ranges of the metric match no annotation."
        ]
    if results.counts.predictions == 0:
        return [
            "No prediction is left to score: all scores are below the threshold of the decoder, or all boxes are "
            "outside the class ranges, as boxes in a wrong frame are."
        ]
    score = {name: metric.value for name, metric in results.headline.items() if metric.value is not None}
    if score["mAP"] < PRACTICALLY_ZERO:
        return [
            f"mAP is {score['mAP']:.4f}: the model has learned nothing yet, or the predictions are in the wrong "
            "frame (LiDAR instead of global, or ego instead of LiDAR), or the index belongs to another version of "
            "the data."
        ]
    causes = []
    if score["mASE"] > SWAPPED_SIZE_ERROR and score["mAOE"] > TURNED_ORIENTATION_ERROR:
        causes.append(
            f"mASE {score['mASE']:.2f} with mAOE {score['mAOE']:.2f}: width and length are probably swapped and "
            "the yaw a quarter turn off, as in the box convention of mmdetection3d before 1.0."
        )
    low, high = BLIND_VELOCITY_ERROR
    if "mAVE" in score and low <= score["mAVE"] <= high and _velocities_are_measured(results):
        causes.append(
            f"mAVE {score['mAVE']:.2f} is about the error of predicting no motion on nuScenes: the model has not "
            "learned velocities, reads one frame only, or its velocities were not rotated to the global axes."
        )
    return causes


def _velocities_are_measured(results: Results) -> bool:
    """Whether the velocity error of every moving class is measured; the metric sets it to 1 where it is not."""
    errors = results.table(ERRORS_BY_CLASS)
    values = [errors.at(name, "AVE") for name in MOVING_CLASSES]
    return all(value is not None and value != 1.0 for value in values)
