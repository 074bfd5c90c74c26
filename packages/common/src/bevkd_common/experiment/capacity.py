"""How many stages this machine trains at the same time, and with how many threads each."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bevkd_common.errors import UserError
from bevkd_common.experiment.stages import STAGES, read_trained

UNKNOWN_MEMORY = 4 << 30
"""Expected peak in bytes of a stage of which none was recorded: a small recipe takes one to three gigabytes."""


@dataclass(frozen=True)
class Capacity:
    """What side-by-side stages share.

    Attributes:
        jobs: Stages at the same time.
        threads: CPU threads of each; None leaves the number that the user has set.
        devices: Values of CUDA_VISIBLE_DEVICES, one a stage; empty where stages are not side by side.
        cpu: Whether stages are trained on the CPU.
    """

    jobs: int = 1
    threads: int | None = None
    devices: tuple[str, ...] = ()
    cpu: bool = True

    @property
    def sentence(self) -> str:
        """For the plan."""
        if self.jobs == 1:
            return "one after the other"
        where = "one GPU each" if self.devices else _threads(self.threads)
        return f"up to {self.jobs} side by side, {where}"


def _threads(threads: int | None) -> str:
    return "OMP_NUM_THREADS each" if threads is None else f"{threads} thread{'' if threads == 1 else 's'} each"


def capacity(jobs: int | None, *, width: int, device: str, processes: int) -> Capacity:
    """The capacity of this machine.

    Args:
        jobs: As the user chose; None takes as many as the stages allow, one a core or one a GPU.
        width: How many stages of the experiment can be trained at the same time.
        device: Type of the device, "cpu" or "cuda".
        processes: Of one stage; a stage of several processes has the machine for itself.
    """
    if processes > 1 or device not in ("cpu", "cuda"):
        return Capacity(cpu=device == "cpu")
    cores = available_cores()
    devices = visible_gpus() if device == "cuda" else ()
    places = len(devices) if devices else cores
    chosen = min(jobs or places, width)
    if devices:
        chosen = min(chosen, len(devices))
    if chosen <= 1:
        return Capacity(cpu=not devices)
    threads = None if "OMP_NUM_THREADS" in os.environ else max(cores // chosen, 1)
    return Capacity(chosen, threads, devices, cpu=not devices)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process sees, as values of CUDA_VISIBLE_DEVICES."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return tuple(listed.split(",")[:count]) if listed else tuple(map(str, range(count)))


def free_device(devices: Sequence[str], taken: Collection[str]) -> str | None:
    """The first device that no stage uses; None on the CPU."""
    return next((device for device in devices if device not in taken), None)


def fits(memory: int, available: int | None, running: Sequence[tuple[int, int]]) -> bool:
    """Whether one more stage fits into the memory; the only stage always does.

    Args:
        memory: Expected peak of the stage in bytes.
        available: Bytes that the system can give now; None where it does not say.
        running: Expected peak and present size in bytes of each stage that runs.
    """
    if available is None or not running:
        return True
    promised = sum(max(expected - held, 0) for expected, held in running)
    return available - promised >= memory


def available_memory() -> int | None:
    """`MemAvailable` in bytes; None where the system has no /proc/meminfo."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def resident_memory(pid: int) -> int:
    """Bytes that a process holds now; 0 where it has ended or the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def expected_memory(root: Path, kind: str) -> int:
    """Largest peak in bytes that a stage of this kind recorded under `root`, or `UNKNOWN_MEMORY`.

    Args:
        root: The folder that holds `.stages`.
        kind: Of the stage: "teacher", "pretraining", "baseline" or "distilled".
    """
    recorded = []
    for path in (root / STAGES).glob(f"{kind}-*/trained.json"):
        # A damaged file of another run does not stop this one.
        with suppress(UserError):
            recorded.append(int(read_trained(path).get("memory", 0)))
    return max(recorded, default=0) or UNKNOWN_MEMORY
