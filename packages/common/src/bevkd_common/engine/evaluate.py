"""Running a detector over a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from bevkd_common.data.dataset import SampleSource
from bevkd_common.data.loader import evaluation_batches
from bevkd_common.data.samples import Batch, Cameras, Cloud
from bevkd_common.engine.tasks import HEAD
from bevkd_common.evaluation.evaluator import Evaluator, Submission
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections
from bevkd_common.progress import Reporter

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

Detected = tuple[Batch, Detections]

DROPPED = "predicted boxes without a finite position and a positive size were dropped"


@torch.no_grad()
def evaluate(
    detector: DetectorModule,
    source: SampleSource,
    evaluator: Evaluator | Submission,
    *,
    batch: int,
    workers: int,
    accelerator: Accelerator,
    precision: torch.dtype | None,
    title: str,
    reporter: Reporter,
) -> int:
    """Feed the detections of every sample to the evaluator, on every process alike.

    Processes share the scenes and exchange what they found, so that each of them ends with all of it. A detector
    that takes key frames in order gets them one by one, each with its state of the one before.

    Args:
        detector: In any mode; evaluated in eval mode and left there.
        source: The split.
        evaluator: What takes the detections, in the order of the source.
        batch: Samples at once, of detectors that do not remember.
        workers: Loader processes.
        accelerator: Device and processes.
        precision: Autocast to this type; None computes in float32.
        title: Shown in the progress bar.
        reporter: Where progress goes.

    Returns:
        The number of predicted boxes that were dropped, see `usable`.
    """
    detector.to(accelerator.device).eval()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    batch = 1 if detector.needs.in_order else batch
    samples = evaluation_batches(source, batch=batch, workers=workers, rank=rank, ranks=ranks)
    theirs: list[Detected] = []
    state: object | None = None
    done = dropped = 0
    with reporter.bar(title, len(source)) as bar:
        for loaded in samples:
            found, state = _detect(detector, loaded.to(accelerator.device), state, precision)
            kept = [usable(one) for one in found]
            dropped += sum(len(one.scores) for one in found) - sum(len(one.scores) for one in kept)
            if ranks == 1:
                evaluator.update(loaded, kept)
            else:
                theirs += [(_alone(loaded, place), one.to("cpu")) for place, one in enumerate(kept)]
            done += len(loaded) * ranks
            bar.update(min(done, len(source)))
    if ranks > 1:
        place = {token: number for number, token in enumerate(source.tokens)}
        for sample, one in sorted(gather_object(theirs), key=lambda detected: place[detected[0].tokens[0]]):
            evaluator.update(sample, [one])
        dropped = sum(gather_object([dropped]))
    if dropped:
        reporter.say(f"{title}: {dropped} {DROPPED}")
    return dropped


def usable(found: Detections) -> Detections:
    """The detections that can be scored: centre, size, yaw and score are finite, and the size is positive.

    A head whose size is an exponential predicts 0 or infinity when its training diverges. A velocity may be NaN,
    which means unknown.
    """
    boxes = found.boxes.tensor
    good = boxes[:, :7].isfinite().all(dim=1) & (boxes[:, 3:6] > 0).all(dim=1) & found.scores.isfinite()
    good &= ~boxes[:, 7:].isinf().any(dim=1)
    if good.all():
        return found
    return Detections(Boxes(boxes[good]), found.scores[good], found.labels[good])


def _detect(
    detector: DetectorModule, batch: Batch, state: object | None, precision: torch.dtype | None
) -> tuple[list[Detections], object | None]:
    with torch.autocast(batch.device.type, precision, enabled=precision is not None):
        outputs = detector(batch, HEAD, state)
    return detector.decode(outputs, batch), outputs.state


def _alone(batch: Batch, place: int) -> Batch:
    """One sample of a batch without what its sensors saw, but for whether they did."""
    row = slice(place, place + 1)
    nothing = torch.empty(0)
    return Batch(
        tokens=batch.tokens[row],
        scenes=batch.scenes[row],
        boxes=Boxes(batch.boxes.tensor[row]),
        labels=batch.labels[row],
        cameras=None if batch.cameras is None else Cameras(nothing, nothing, nothing, nothing),
        clouds={name: Cloud(nothing, (), cloud.columns) for name, cloud in batch.clouds.items()},
        aug_T_lidar=batch.aug_T_lidar[row],
        global_T_lidar=None if batch.global_T_lidar is None else batch.global_T_lidar[row],
    )
