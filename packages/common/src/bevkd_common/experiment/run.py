"""The whole experiment: data, teacher, arms, scores, report; for every seed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from accelerate import Accelerator

from bevkd_common.config.plugins import MethodSpec, installed
from bevkd_common.config.reading.loading import dump
from bevkd_common.config.recipe import Recipe
from bevkd_common.engine.trackers import check_trackers
from bevkd_common.errors import UserError
from bevkd_common.experiment.build import built_from, check_data_root, data_needs, method_spec
from bevkd_common.experiment.capacity import Capacity, capacity, expected_memory
from bevkd_common.experiment.execution import (
    SOURCES_CHANGED,
    is_finished,
    open_laboratory,
    run_node,
    run_seed,
    train_job,
)
from bevkd_common.experiment.graph import Job, Node, width
from bevkd_common.experiment.identity import identify
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.plan import plan_lines
from bevkd_common.experiment.readiness import check_data, verify_data
from bevkd_common.experiment.record import CONFIG, RunFolder, environment
from bevkd_common.experiment.request import Request, requested_stages, student_arms
from bevkd_common.experiment.side_by_side import run_side_by_side, start_server
from bevkd_common.experiment.stages import Stage
from bevkd_common.progress import Reporter


def run_experiment(
    recipe: Recipe, request: Request, reporter: Reporter, accelerator: Accelerator, jobs: int | None = 1
) -> RunFolder:
    """Run, or finish, an experiment and record which stage is which arm.

    Args:
        recipe: The experiment.
        request: What is to be run of it.
        reporter: Where progress goes.
        accelerator: Device and processes.
        jobs: Stages that are trained at the same time, each in a process of its own; 1 trains them in this
            process, None chooses from the machine.

    Raises:
        UserError: If the recipe does not fit together, the data is missing, the run's name is taken, the source
            code changes while stages are trained side by side, or a stage fails.
    """
    check_data_root(recipe.dataset, request.data_root)
    arms = student_arms(recipe, request)
    graph = requested_stages(recipe, request)
    levels = {
        (seed, name): [(seed, p) for p in node.parents] for seed in request.seeds for name, node in graph.items()
    }
    machine = capacity(
        jobs, width=width(levels), device=accelerator.device.type, processes=accelerator.num_processes
    )
    if machine.jobs > 1:
        start_server(machine, built_from(recipe))
    lines = plan_lines(recipe, arms, request.seeds, accelerator.num_processes)
    lines.append(f"stages   {len(graph) * len(request.seeds)}, {machine.sentence}")
    for line in lines:
        reporter.say(line)
    check_trackers(recipe.trackers)
    spec = method_spec(recipe.method)
    folder = RunFolder(request.out)
    if accelerator.is_main_process:
        folder.open(dump(recipe), restart=request.restart)
        folder.write_environment(environment(accelerator.device, installed(MethodSpec).origin[spec.kind]))
    accelerator.wait_for_everyone()
    record: dict[str, Any] = {
        "method": spec.kind,
        "data_root": str(request.data_root.absolute()) if request.data_root else None,
        "plan": lines,
        "controls": request.controls,
        "ablations": list(request.ablations),
        "baseline": request.baseline,
        "seeds": list(request.seeds),
        "data": {},
        "stages": {},
    }
    with folder.running() if accelerator.is_main_process else nullcontext():
        if machine.jobs > 1:
            _run_side_by_side(recipe, request, graph, folder, record, machine, reporter, accelerator)
            return folder
        for seed in request.seeds:
            lab = open_laboratory(recipe, seed, folder.root, request.data_root, reporter, accelerator)
            _look_at_data(lab, request)
            record["data"][str(seed)] = lab.dataset.fingerprint(data_needs(recipe.teacher, recipe.student))
            record["stages"][str(seed)] = {}
            for name, stage in run_seed(lab, recipe, arms):
                record["stages"][str(seed)][name] = stage.folder.name
                if accelerator.is_main_process:
                    folder.write(record)
    return folder


def _look_at_data(lab: Laboratory, request: Request) -> None:
    check_data(lab)
    if request.verify_data:
        if lab.accelerator.is_main_process:
            verify_data(lab)
        lab.accelerator.wait_for_everyone()


def _run_side_by_side(
    recipe: Recipe,
    request: Request,
    graph: Mapping[str, Node],
    folder: RunFolder,
    record: dict[str, Any],
    machine: Capacity,
    reporter: Reporter,
    accelerator: Accelerator,
) -> None:
    """All stages of all seeds, each in a process of its own; run.json lists those that are finished, in order."""
    labs = {
        seed: open_laboratory(recipe, seed, folder.root, request.data_root, reporter, accelerator)
        for seed in request.seeds
    }
    for lab in labs.values():
        _look_at_data(lab, request)
    needs = data_needs(recipe.teacher, recipe.student)
    record["data"] = {str(seed): lab.dataset.fingerprint(needs) for seed, lab in labs.items()}
    finished: set[str] = set()

    def note(job: Job) -> None:
        finished.add(job.key)
        stages: dict[str, dict[str, str]] = {}
        for seed, lab in labs.items():
            found = identify(lab, graph)
            done = [name for name in graph if _key(name, seed) in finished]
            if any(name not in found or found[name].trained is None for name in done):
                raise UserError(SOURCES_CHANGED)
            names = {name: found[name].folder.name for name in done}
            stages |= {str(seed): names} if names else {}
        record["stages"] = stages
        folder.write(record)

    jobs: dict[str, Job] = {}
    for seed, lab in labs.items():
        found = identify(lab, graph)
        for key, job in seed_jobs(graph, found, request, seed).items():
            if is_finished(lab, graph[job.arm], found.get(job.arm)):
                run_node(lab, graph[job.arm], found)
                note(job)
            else:
                jobs[key] = job
    if jobs:
        run_side_by_side(jobs, partial(train_job, machine), machine, reporter, note)


def seed_jobs(graph: Mapping[str, Node], found: Mapping[str, Stage], request: Request, seed: int) -> dict[str, Job]:
    """The stages of one seed as jobs, by key.

    Args:
        graph: The stages.
        found: Those that are identified; one that is not trained for lack of its parents' times is left out.
        request: Of the run.
        seed: Of the experiment.
    """
    root = request.out.parent
    return {
        _key(name, seed): Job(
            key=_key(name, seed),
            title=f"{name}, seed {seed}",
            parents=tuple(_key(parent, seed) for parent in node.parents),
            recipe=request.out / CONFIG,
            out=request.out,
            data_root=request.data_root,
            arm=name,
            seed=seed,
            memory=expected_memory(root, found[name].kind if name in found else "baseline"),
            done=name in found and found[name].trained is not None,
            fingerprint=found[name].fingerprint if name in found else None,
        )
        for name, node in graph.items()
    }


def _key(name: str, seed: int) -> str:
    return f"{name}-seed{seed}"
