"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from bevkd_common.config.recipe import Recipe
    from bevkd_common.config.recipes import RecipeFile

MethodOrNone = Annotated[
    str | None, typer.Argument(metavar="METHOD", help="A method that is installed; not needed with --from.")
]
Method = Annotated[str, typer.Argument(metavar="METHOD", help="A method that is installed, such as distillbev.")]
Teacher = Annotated[str | None, typer.Option(help="Teacher, as a recipe names it.")]
Student = Annotated[str | None, typer.Option(help="Student, as a recipe names it.")]
DatasetName = Annotated[str | None, typer.Option(help="Data set, as a recipe names it.", show_default="synthetic")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set; data that can be made need none.")]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "--from",
        help="A recipe's name or file, instead of the flags above; config.yaml of a run repeats it.",
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=c changes one value of the recipe.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; runs/<recipe> where not given.")]
Seed = Annotated[int | None, typer.Option(help="One of the recipe's seeds; the first where not given.")]
Seeds = Annotated[int | None, typer.Option(min=2, help="Run that many of the recipe's seeds, and its controls.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="Processes, one a GPU; 0 stays on the CPU.")]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Machines, on each of which the command runs; see docs/slurm.sh.")
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Throw away an earlier run of this name and its trained stages, also those that other runs share.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/NAME.")]


def launch(gpus: int | None, nodes: int | None = None) -> None:
    """Start the same command once a process, through torchrun, unless that has been done or one is enough."""
    from bevkd_common.errors import UserError

    processes, machines = gpus or 1, nodes or 1
    if "LOCAL_RANK" in os.environ or processes * machines == 1:
        return
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    if machines == 1:
        launcher.append("--standalone")
    else:
        head = os.environ.get("MASTER_ADDR")
        if head is None:
            raise UserError(
                "--nodes: set MASTER_ADDR to the name of the first node on every node; see docs/slurm.sh"
            )
        port = os.environ.get("MASTER_PORT", "29500")
        launcher += [f"--nnodes={machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint={head}:{port}"]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "bevkd", *sys.argv[1:]])


def resolve_recipe(
    method: str | None,
    teacher: str | None,
    student: str | None,
    dataset: str | None,
    name: str | None,
    overrides: list[str] | None,
) -> tuple[str, Recipe]:
    """Name and content of the recipe that the flags select.

    Raises:
        UserError: If they select none.
    """
    from bevkd_common.config.plugins import MethodSpec, installed
    from bevkd_common.config.reading.loading import load_recipe
    from bevkd_common.config.recipes import catalogue, recipe_path
    from bevkd_common.errors import UserError

    if name is not None:
        flags = {"--teacher": teacher, "--student": student, "--dataset": dataset}
        if given := [flag for flag, value in flags.items() if value is not None]:
            raise UserError(f"{name} names the recipe: leave out {', '.join(given)}")
        path = recipe_path(name)
        loaded = load_recipe(path, overrides or ())
        own = installed(MethodSpec).of(loaded.method)
        if method is not None and own.kind != installed(MethodSpec).find(method).kind:
            raise UserError(f"{name} is a recipe of {own.kind}, not of {method}: say {own.kind} for METHOD")
        return Path(str(path)).stem, loaded
    if method is None:
        raise UserError("say a METHOD, such as distillbev, or which run to repeat: --from runs/NAME/config.yaml")
    file: RecipeFile = catalogue().find(method, teacher=teacher, student=student, dataset=dataset or "synthetic")
    return file.name.replace("/", "-"), load_recipe(file.path, overrides or ())


def default_out(recipe: str, overrides: list[str] | None) -> Path:
    """runs/<recipe>; a recipe that is changed on the command line gets a name of its own."""
    from hashlib import sha256

    changed = f"-{sha256(' '.join(overrides).encode()).hexdigest()[:6]}" if overrides else ""
    return Path("runs") / f"{recipe}{changed}"


def seeds_of(recipe: Recipe, seed: int | None, count: int | None) -> tuple[int, ...]:
    """One of the recipe's seeds, or the first few.

    Raises:
        UserError: If it has no such, or both were asked for.
    """
    from bevkd_common.errors import UserError

    if seed is not None and count is not None:
        raise UserError("give --seed for one seed, or --seeds for several, not both")
    if count is not None:
        if count > len(recipe.seeds):
            raise UserError(f"--seeds {count}: the recipe has {len(recipe.seeds)} seeds; add to its `seeds`")
        return recipe.seeds[:count]
    if seed is not None and seed not in recipe.seeds:
        raise UserError(f"--seed {seed} is none of the recipe's seeds: {', '.join(map(str, recipe.seeds))}")
    return (recipe.seeds[0] if seed is None else seed,)


def accelerator_of(gpus: int | None) -> Accelerator:
    """Device and processes of this command."""
    import torch
    from accelerate import Accelerator

    # Without a GPU it must be told so, or several processes would not find each other.
    return Accelerator(cpu=gpus == 0 or not torch.cuda.is_available())
