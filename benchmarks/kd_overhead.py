"""What a distilled step costs beside a student's step and the teacher's forward pass; with and without the cache.

    python benchmarks/kd_overhead.py --size tiny
    python benchmarks/kd_overhead.py --size paper --steps 10 --method unidistill

Four kinds of step take turns in one process on one batch: the student alone (forward, losses, backward, AdamW), the
frozen teacher's forward pass, the distilled student, and the distilled student with the teacher's maps on disk.
Weights are random. "paper" is BEVDet with ResNet-50 at 256 x 704 under a pillar CenterPoint, batch 1, on six random
images and 250 000 random points.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.recipes import load_named
from bevkd_common.data.samples import Batch, Cameras, Cloud
from bevkd_common.engine.allocator import keep_freed_memory
from bevkd_common.engine.optimizer import build_optimizer
from bevkd_common.engine.tasks import DistillationTask, SupervisedTask, Task
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.engine.teacher_cache import TeacherCache
from bevkd_common.engine.train import AUTOCAST
from bevkd_common.experiment.build import build_detector, build_method, dataset_spec
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import rigid, rotation_z

SIZES = {
    "tiny": ("centerpoint-bevdet.synthetic", 2, (64, 176), 12_000, 25.0),
    "paper": ("centerpoint-bevdet.nuscenes", 1, (256, 704), 250_000, 51.0),
}
WARM_UP = 2


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--method", default="distillbev")
    parser.add_argument("--steps", type=int, default=50, help="of each kind")
    parser.add_argument("--precision", choices=AUTOCAST, help="the recipe's where not given")
    parser.add_argument("--output", type=Path, default=Path("kd-overhead-benchmark.json"))
    arguments = parser.parse_args()
    pair, samples, image_size, points, reach = SIZES[arguments.size]
    name = f"{arguments.method}/{pair}"
    # Times do not depend on what the weights are, and nothing need be fetched.
    recipe = load_named(name, ["student.image_backbone.weights=null"] if "nuscenes" in name else [])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    batch = _batch(samples, image_size, points, reach).to(device)
    precision = AUTOCAST[arguments.precision or recipe.student_training.precision]
    with tempfile.TemporaryDirectory() as folder:
        kinds = _kinds(recipe, batch, Path(folder), precision, device)
        for _ in range(WARM_UP):
            for step in kinds.values():
                step()
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.steps):
            for kind, step in kinds.items():
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[kind].append(time.perf_counter() - started)
    typical = {kind: median(values) for kind, values in seconds.items()}
    student, teacher = typical["student"], typical["teacher"]
    figures = {
        "recipe": name, "batch": samples, "points": points, "steps_of_each": arguments.steps,
        "precision": str(precision), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        **{f"{kind}_s": value for kind, value in typical.items()},
        "distilled_over_student_and_teacher": typical["distilled"] / (student + teacher),
        "cached_over_student": typical["cached"] / student,
    }  # fmt: skip
    for key, value in figures.items():
        print(f"{key:36} {value:.4f}" if isinstance(value, float) else f"{key:36} {value}")
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def _kinds(
    recipe: Recipe, batch: Batch, folder: Path, precision: torch.dtype | None, device: torch.device
) -> dict[str, Callable[[], object]]:
    classes = dataset_spec(recipe.dataset).classes_of(recipe.dataset)

    def distillation(cache: TeacherCache | None) -> DistillationTask:
        teacher, student = (build_detector(c, classes, seed=0).to(device) for c in (recipe.teacher, recipe.student))
        method = build_method(recipe.method, teacher, student, names=("teacher", "student")).to(device)
        method.prepare(teacher, student, [batch])
        return DistillationTask(student, FrozenTeacher(teacher, cache=cache), method)

    alone, distilled = build_detector(recipe.student, classes, seed=0).to(device), distillation(None)
    teacher, want = distilled.teacher, distilled.method.teacher_taps

    def infer() -> None:
        # Voxels are kept with a batch; every step has a batch of its own.
        with torch.autocast(device.type, precision, enabled=precision is not None):
            teacher(batch.to(device), want)

    return {
        "student": _step(SupervisedTask(alone), recipe, batch, precision, device),
        "teacher": infer,
        "distilled": _step(distilled, recipe, batch, precision, device),
        "cached": _step(distillation(TeacherCache(folder)), recipe, batch, precision, device),
    }


def _step(
    task: Task, recipe: Recipe, batch: Batch, precision: torch.dtype | None, device: torch.device
) -> Callable[[], None]:
    task.train()
    optimizer = build_optimizer(task, recipe.student_training)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            terms = task(batch.to(device)).terms
        torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _batch(samples: int, size: tuple[int, int], points: int, reach: float) -> Batch:
    """Six cameras that look around, points around the car, eight cars, pedestrians and cones."""
    generator = torch.Generator().manual_seed(0)
    yaw = torch.tensor([55.0, 0, -55, 110, 180, -110]).deg2rad() + torch.pi / 2
    ahead = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose = rigid(rotation_z(yaw) @ ahead, torch.tensor([0.0, 0.0, -0.3])).expand(samples, 6, 4, 4)
    focal = 0.7 * size[1]
    intrinsics = torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])
    where = (torch.rand(samples * points, 3, generator=generator) - 0.5) * torch.tensor([2 * reach, 2 * reach, 4.0])
    cloud = torch.cat([where, torch.rand(samples * points, 2, generator=generator)], dim=1)
    boxes = torch.rand(samples, 24, 9, generator=generator)
    boxes[..., :2] = (boxes[..., :2] - 0.5) * 1.6 * reach
    boxes[..., 3:6] += 1
    return Batch(
        tokens=tuple(f"random-{k}" for k in range(samples)),
        scenes=("random",) * samples,
        boxes=Boxes(boxes),
        labels=torch.tensor([0, 8, 9]).repeat(8).expand(samples, 24).clone(),
        cameras=Cameras(
            images=torch.randint(0, 256, (samples, 6, 3, *size), dtype=torch.uint8, generator=generator),
            intrinsics=intrinsics.expand(samples, 6, 3, 3),
            lidar_T_cam=pose,
            image_aug=torch.eye(3).expand(samples, 6, 3, 3),
        ),
        clouds={"lidar": Cloud(cloud, (points,) * samples, ("x", "y", "z", "intensity", "seconds"))},
        aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(samples, 4, 4),
        views=tuple(f"random-{k}" for k in range(samples)),
    )


if __name__ == "__main__":
    main()
