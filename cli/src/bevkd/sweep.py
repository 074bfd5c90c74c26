"""`bevkd sweep`: a grid over a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bevkd.display import print_table, progress_reporter
from bevkd.options import (
    DataRoot,
    DatasetName,
    Gpus,
    Jobs,
    MethodOrNone,
    Out,
    Overrides,
    RecipeOption,
    Student,
    Teacher,
    accelerator_of,
    default_out,
    resolve_recipe,
    seeds_of,
)

EXECUTORS = ("local", "slurm", "ray")


def sweep(
    method: MethodOrNone = None,
    grid: Annotated[list[str] | None, typer.Option(help="a.b=[c, d]: an axis and its values; one or more.")] = None,
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Out = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of the recipe's seeds to run.")] = 1,
    on: Annotated[str, typer.Option(help="Where each stage is trained: local, slurm or ray.")] = "local",
    sbatch: Annotated[list[str] | None, typer.Option(help="An option for sbatch, such as --gpus=1.")] = None,
    gpus: Gpus = None,
    jobs: Jobs = None,
) -> None:
    """Train every combination of values with shared stages, and print a table; the same command resumes."""
    from bevkd_common.errors import UserError
    from bevkd_common.experiment import sweep as sweeps
    from bevkd_common.experiment.capacity import capacity
    from bevkd_common.experiment.graph import width

    if on not in EXECUTORS:
        raise UserError(f"--on {on}: choose {', '.join(EXECUTORS)}")
    axes = dict(map(_axis, grid or ()))
    if not axes:
        raise UserError("--grid: name an axis and its values, such as --grid 'method.weight=[0.5, 1]'")
    chosen, base = resolve_recipe(method, teacher, student, dataset, recipe, overrides)
    folder = out or Path(f"{default_out(chosen, overrides)}-sweep")

    def load(values: Any) -> Any:
        return resolve_recipe(method, teacher, student, dataset, recipe, [*(overrides or ()), *values])[1]

    points = sweeps.grid_points(load, axes, folder)
    reporter, accelerator = progress_reporter(), accelerator_of(gpus)
    numbers = seeds_of(base, None, seeds) if seeds > 1 else base.seeds[:1]
    sweeps.prepare_points(points)
    stages = sweeps.sweep_jobs(points, numbers, data_root=data_root, reporter=reporter, accelerator=accelerator)
    waiting = {name: job for name, job in stages.items() if not job.done}
    reporter.say(f"{len(points)} points, {len(numbers)} seeds: {len(stages)} stages, {len(waiting)} to be trained")
    if on == "slurm" and waiting:
        script = sweeps.write_slurm(stages, folder, gpus=gpus, options=sbatch or ())
        sent = sweeps.submit(script)
        reporter.say(f"{'submitted by' if sent else 'no sbatch here: submit with'} {script}; then run this again")
        return
    if on == "ray":
        sweeps.run_on_ray(waiting, gpus=gpus, reporter=reporter)
    elif gpus is not None and gpus > 1:
        sweeps.run_commands(waiting, gpus=gpus, reporter=reporter)
    else:
        widest = width({name: job.parents for name, job in waiting.items()})
        machine = capacity(jobs, width=widest, device=accelerator.device.type, processes=1)
        reporter.say(f"stages {machine.sentence}")
        sweeps.run_here(waiting, machine, reporter)
    metric, rows = sweeps.collect(points, numbers, data_root=data_root, reporter=reporter, accelerator=accelerator)
    lines = sweeps.write_table(metric, rows, folder)
    print_table((*axes, *sweeps.COLUMNS.values()), lines)
    reporter.say(f"table: {folder / 'sweep.md'}")


def _axis(text: str) -> tuple[str, list[Any]]:
    from bevkd_common.config.reading.overrides import parse_override
    from bevkd_common.config.reading.yaml_tree import Problems, plain
    from bevkd_common.errors import UserError

    wrong = UserError(f"--grid {text}: write a key and a list of values, such as method.weight=[0.5, 1]")
    try:
        axis = parse_override(text)
    except Problems:
        raise wrong from None
    values = plain(axis.value)
    if not isinstance(values, list):
        raise wrong
    return axis.key, values
