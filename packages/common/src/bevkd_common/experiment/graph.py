"""The stages of an experiment as a graph: what each stage needs, and which stages can be trained at the same time.

This module starts nothing and reads no files. A run, a sweep, Slurm and Ray share it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bevkd_common.experiment.arms import Arm

PRETRAINING = "pretraining"

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Node:
    """One stage of one seed.

    Attributes:
        name: Unique within the seed: that of the arm, or that of a pretraining.
        arm: The arm to train, or the first arm that needs the pretraining.
        pretrains: Whether the stage is the pretraining of `arm`.
        parents: Names of the stages that must be finished before.
    """

    name: str
    arm: Arm
    pretrains: bool
    parents: tuple[str, ...]


def stage_graph(teacher: Arm, arms: Sequence[Arm]) -> dict[str, Node]:
    """The stages of one seed by name, parents first.

    Arms with the same detector and the same pretraining share one stage of pretraining. A distilled arm waits for
    the teacher. An arm of equal time waits for the baseline and for the arm that sets its time.

    Args:
        teacher: The teacher.
        arms: The arms of the student.
    """
    graph: dict[str, Node] = {}
    for arm in (teacher, *arms):
        parents: list[str] = []
        if arm.pretraining is not None:
            parents.append(_pretraining_of(arm, graph))
        if arm.method is not None:
            parents.append(teacher.name)
        if arm.as_long_as is not None:
            parents += dict.fromkeys(("baseline", arm.as_long_as))
        graph[arm.name] = Node(arm.name, arm, False, tuple(parents))
    return graph


def _pretraining_of(arm: Arm, graph: dict[str, Node]) -> str:
    """Name of the pretraining of an arm, added to the graph where no earlier arm has the same."""
    for node in graph.values():
        same = (node.arm.detector, node.arm.pretraining) == (arm.detector, arm.pretraining)
        if node.pretrains and same:
            return node.name
    name = PRETRAINING if arm.name in ("baseline", "distilled") else f"{arm.name}_{PRETRAINING}"
    graph[name] = Node(name, arm, True, ())
    return name


@dataclass(frozen=True)
class Job:
    """One stage as a unit of work for another process.

    Attributes:
        key: Unique among the jobs.
        title: For messages.
        parents: Keys of the jobs that must be finished before.
        recipe: File of the resolved recipe.
        out: Folder of the run that the stage belongs to.
        data_root: Folder of the data set; None where the data can be made.
        arm: Name of the stage within its seed.
        seed: Of the experiment.
        memory: Expected peak of the process's memory in bytes.
        done: Whether the stage is trained.
        fingerprint: Of the stage; None where its parents' times, which set its length, are not known yet.
    """

    key: str
    title: str
    parents: tuple[str, ...]
    recipe: Path
    out: Path
    data_root: Path | None
    arm: str
    seed: int
    memory: int = 0
    done: bool = False
    fingerprint: str | None = None

    def command(self, gpus: int | None) -> list[str]:
        """The command that trains and scores the stage; `gpus` processes, None leaves it to the command."""
        command = [sys.executable, "-m", "bevkd", "train", "--from", str(self.recipe), "--arm", self.arm]
        command += ["--seed", str(self.seed), "--out", str(self.out)]
        command += ["--data-root", str(self.data_root)] if self.data_root else []
        return command + ([] if gpus is None else ["--gpus", str(gpus)])


def ready(jobs: Mapping[str, Job], finished: Collection[str], started: Collection[str]) -> list[Job]:
    """Jobs that are not started and whose parents are finished, in order.

    Parents that are no jobs count as finished.
    """
    return [
        job
        for key, job in jobs.items()
        if key not in started and key not in finished and all(p in finished or p not in jobs for p in job.parents)
    ]


def width(parents: Mapping[Key, Collection[Key]]) -> int:
    """How many stages of a graph are at the same distance from its roots, at most.

    Args:
        parents: Name of each stage to the names of its parents; parents first, other names are ignored.
    """
    depth: dict[Key, int] = {}
    for name, above in parents.items():
        depth[name] = 1 + max((depth[parent] for parent in above if parent in depth), default=-1)
    levels = list(depth.values())
    return max((levels.count(level) for level in set(levels)), default=1)
