"""nuScenes scores that point to a mistake outside the model."""

from bevkd_common.evaluation.results import Results

# Half a turn of uniform error averages pi / 2; swapped width and length of a car leave about 0.7 of scale error.
SWAPPED_SIZE_ERROR = 0.6
TURNED_ORIENTATION_ERROR = 1.3
BLIND_VELOCITY_ERROR = (0.9, 1.1)


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
    if score["mAP"] == 0:
        return [
            "mAP is exactly 0: the predictions are probably in the wrong frame (LiDAR instead of global, or ego "
            "instead of LiDAR), or the index belongs to another version of the data."
        ]
    causes = []
    if score["mASE"] > SWAPPED_SIZE_ERROR and score["mAOE"] > TURNED_ORIENTATION_ERROR:
        causes.append(
            f"mASE {score['mASE']:.2f} with mAOE {score['mAOE']:.2f}: width and length are probably swapped and "
            "the yaw a quarter turn off, as in the box convention of mmdetection3d before 1.0."
        )
    low, high = BLIND_VELOCITY_ERROR
    if "mAVE" in score and low <= score["mAVE"] <= high:
        causes.append(
            f"mAVE {score['mAVE']:.2f} is the error of predicting no motion: the model probably reads one frame "
            "only, or its velocities were not rotated to the global axes."
        )
    return causes
