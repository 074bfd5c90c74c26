"""`bevkd run`, `train`, `eval`, `report`, `ablate`: experiments from start to report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bevkd.display import print_table, progress_reporter

if TYPE_CHECKING:
    from bevkd_common.config.recipe import Recipe
    from bevkd_common.config.recipes import RecipeFile
    from bevkd_common.experiment.record import RunFolder
    from bevkd_common.experiment.run import Request

MethodOrNone = Annotated[
    str | None, typer.Argument(metavar="METHOD", help="A method that is installed; not needed with --from.")
]
Method = Annotated[str, typer.Argument(metavar="METHOD", help="A method that is installed, such as distillbev.")]
Teacher = Annotated[str | None, typer.Option(help="Teacher, as a recipe names it.")]
Student = Annotated[str | None, typer.Option(help="Student, as a recipe names it.")]
DatasetName = Annotated[str, typer.Option(help="Data set, as a recipe names it.")]
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
Restart = Annotated[bool, typer.Option("--restart", help="Throw away what an earlier run of this name did.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/NAME.")]


def run(
    method: MethodOrNone = None,
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = "synthetic",
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    seeds: Seeds = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    restart: Restart = False,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Leave out the student alone, and with it the comparison.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Measure two real steps of each training, say what it takes, and stop."),
    ] = False,
) -> None:
    """Run a whole experiment: data, teacher, student alone, student distilled, scores, report."""
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.run import Request, repeated

    if method is None and recipe is None:
        raise UserError("say a METHOD, such as distillbev, or which run to repeat: --from runs/NAME/config.yaml")
    chosen, loaded = _recipe(method, teacher, student, dataset, recipe, overrides)
    before = None if recipe is None else repeated(Path(recipe))
    named = Path("runs") / before.out.name if before and not overrides else _default_out(chosen, overrides)
    several = seed is None and seeds is None and before is not None
    request = Request(
        out=out or named,
        data_root=data_root or (before.data_root if before else None),
        seeds=before.seeds if several and before else _seeds(loaded, seed, seeds),
        controls=seeds is not None or bool(several and before and before.controls),
        ablations=before.ablations if before else (),
        baseline=not no_baseline and (before is None or before.baseline),
        restart=restart,
    )
    if plan:
        _print_plan(loaded, request, gpus)
        return
    _launch(gpus, nodes)
    _experiment(loaded, request, gpus)


def ablate(
    method: Method,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ABLATION]...", help="Some of the method's ablations; all of them."),
    ] = None,
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = "synthetic",
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    restart: Restart = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the method's ablations and stop.")] = False,
) -> None:
    """Train a method's own ablations beside the recipe itself; teacher and baseline are shared."""
    from bevkd_common.config.plugins import MethodSpec, installed

    spec = installed(MethodSpec).find(method)
    if list_only:
        print_table(("ablation", "what changes"), [(name, row.summary) for name, row in spec.ablations.items()])
        return
    from bevkd_common.experiment.run import Request

    chosen, loaded = _recipe(method, teacher, student, dataset, recipe, overrides)
    request = Request(
        out=out or Path(f"{_default_out(chosen, overrides)}-ablation"),
        data_root=data_root,
        seeds=_seeds(loaded, seed, None),
        ablations=tuple(names or spec.ablations),
        restart=restart,
    )
    _launch(gpus, nodes)
    _experiment(loaded, request, gpus)


def train(
    method: Method,
    arm: Annotated[str, typer.Option(help="teacher, baseline or distilled.")] = "baseline",
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = "synthetic",
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
) -> None:
    """Train and score one model of a recipe, and the teacher if it needs one; `run` takes it from there."""
    from bevkd_common.experiment.run import train_one

    chosen, loaded = _recipe(method, teacher, student, dataset, recipe, overrides)
    _launch(gpus, nodes)
    root = (out or _default_out(chosen, overrides)).parent
    reporter = progress_reporter()
    folder = train_one(
        loaded,
        arm,
        runs=root,
        data_root=data_root,
        seed=_seeds(loaded, seed, None)[0],
        reporter=reporter,
        accelerator=_accelerator(gpus),
    )
    reporter.say(str(folder))


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="Folder of a run, or a submission that any tool wrote.")
    ],
    gpus: Gpus = None,
    submission: Annotated[
        Path | None, typer.Option(help="Of a run: folder for the official submission files, one a model and seed.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the nuScenes data set: of a file, or of --split.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version folder of a file, the only one where not given; or of --split.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a file: the split it was made for; val. With --submission: what to submit, as `test`."
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Of a file: `devkit` for nuscenes-devkit's own scores, or `ours`.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Of a file: JSON file for all scores.")] = None,
) -> None:
    """Score every trained model of a run again, or a submission; exit code 2 where its convention is wrong."""
    if path.is_file():
        _refuse_flags(f"{path} is a file", {"--gpus": gpus, "--submission": submission})
        _evaluate_submission(path, data_root, version, split or "val", engine or "ours", results)
        return
    _refuse_flags(f"{path} is a run", {"--engine": engine, "--results": results})
    other = {"--data-root": data_root, "--version": version}
    if submission is None:
        _refuse_flags("a run is scored on its own data, without --submission", other | {"--split": split})
    if split is None:
        _refuse_flags("a run has data of its own, without --split", other)
    from bevkd_common.experiment.finished import OtherSplit, score_again, write_submissions

    folder, reporter, accelerator = _run_folder(path), progress_reporter(), _accelerator(gpus)
    if split is None:
        score_again(folder, reporter, accelerator)
    if submission is not None:
        chosen = None if split is None else OtherSplit(split, version, data_root)
        write_submissions(folder, reporter, accelerator, submission, chosen)


def report(run_folder: RunPath, gpus: Gpus = None) -> None:
    """Write the report of a run again."""
    _write_report(_run_folder(run_folder), gpus)


def _refuse_flags(why: str, flags: Mapping[str, object]) -> None:
    """Flags that would be ignored are errors."""
    from bevkd_common.errors import UserError

    given = [name for name, value in flags.items() if value is not None]
    if given:
        raise UserError(f"{why}: leave out {', '.join(given)}")


def _evaluate_submission(
    path: Path, data_root: Path | None, version: str | None, split: str, engine: str, results: Path | None
) -> None:
    from bevkd_common.data.index_file import open_index
    from bevkd_common.data.nuscenes_tables import only_version
    from bevkd_common.errors import UserError
    from bevkd_common.evaluation.foreign import devkit_headline, score_submission

    if data_root is None:
        raise UserError(f"{path} is a file: name the folder of its data set with --data-root")
    if engine not in ("ours", "devkit"):
        raise UserError(f"--engine {engine}: choose ours or devkit")
    chosen = version or only_version(data_root)
    reporter = progress_reporter()
    with reporter.bar(f"index of {chosen}", 1) as bar:
        index = open_index(data_root, chosen, bar.update, allow_missing=True)
    if engine == "devkit":
        _print_scores(devkit_headline(data_root, chosen, split, path))
        return
    with reporter.bar("samples scored", 1) as bar:
        scored = score_submission(index, split, path, bar.update)
    _print_scores({name: metric.value for name, metric in scored.results.headline.items()})
    precision = scored.results.tables["average precision"]
    rows = zip(precision.rows, precision.values, strict=True)
    print_table(
        ("class", *(f"AP {column}" for column in precision.columns)),
        [(name, *("" if value is None else f"{value:.3f}" for value in values)) for name, values in rows],
    )
    if results is not None:
        results.write_text(scored.results.to_json())
    if scored.findings:
        raise UserError("\n".join(scored.findings))


def _print_scores(scores: Mapping[str, float]) -> None:
    typer.echo("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))


def _experiment(recipe: Recipe, request: Request, gpus: int | None) -> None:
    from bevkd_common.experiment.run import run_experiment

    folder = run_experiment(recipe, request, progress_reporter(), _accelerator(gpus))
    _write_report(folder, gpus)


def _print_plan(recipe: Recipe, request: Request, gpus: int | None) -> None:
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.measure import estimate
    from bevkd_common.experiment.plan import plan_lines
    from bevkd_common.experiment.run import student_arms

    reporter, accelerator = progress_reporter(), _accelerator(gpus)
    for line in plan_lines(recipe, student_arms(recipe, request), request.seeds, gpus or 1):
        reporter.say(line)
    found = estimate(recipe, request, reporter, cpu=accelerator.device.type == "cpu")
    rows, hours = [], 0.0
    for one in found:
        measured = one.rehearsal
        hours += one.hours * len(request.seeds)
        rows.append(
            (one.title, "", "", "", "", "", "no")
            if measured is None
            else (
                one.title,
                str(measured.steps),
                f"{measured.step_s:.3f}",
                f"{measured.data_s:.3f}",
                f"{one.hours:.2f}",
                f"{measured.memory / 1e9:.2f}",
                f"{measured.checkpoint / 1e9:.3f}",
                "yes" if one.fits else "no",
            )
        )
    print_table(("stage", "steps", "s a step", "of it data", "hours", "peak GB", "GB a checkpoint", "fits"), rows)
    reporter.say(
        f"{hours:.2f} hours of training for {len(request.seeds)} seeds on one process; scoring is not in it"
    )
    if not all(one.fits for one in found):
        names = ", ".join(one.title for one in found if not one.fits)
        raise UserError(f"{names}: more than the {found[0].memory / 1e9:.0f} GB there are; lower `micro_batch`")


def _launch(gpus: int | None, nodes: int | None = None) -> None:
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


def _write_report(folder: RunFolder, gpus: int | None) -> None:
    from bevkd_common.experiment.reporting import report_input
    from bevkd_common.report.render import write_report

    accelerator = _accelerator(gpus)
    if not accelerator.is_main_process:
        return
    reporter = progress_reporter()
    page = write_report(report_input(folder, reporter, accelerator), folder.path / "report")
    reporter.say(f"report: {page}")


def _recipe(
    method: str | None,
    teacher: str | None,
    student: str | None,
    dataset: str,
    name: str | None,
    overrides: list[str] | None,
) -> tuple[str, Recipe]:
    from bevkd_common.config.loading import load_recipe
    from bevkd_common.config.plugins import MethodSpec, installed
    from bevkd_common.config.recipes import catalogue, recipe_path
    from bevkd_common.errors import UserError

    if name is not None:
        path = recipe_path(name)
        loaded = load_recipe(path, overrides or ())
        own = installed(MethodSpec).of(loaded.method)
        if method is not None and own.kind != installed(MethodSpec).find(method).kind:
            raise UserError(f"{name} is a recipe of {own.kind}, not of {method}: say {own.kind} for METHOD")
        return Path(str(path)).stem, loaded
    assert method is not None
    file: RecipeFile = catalogue().find(method, teacher=teacher, student=student, dataset=dataset)
    return file.name.replace("/", "-"), load_recipe(file.path, overrides or ())


def _default_out(recipe: str, overrides: list[str] | None) -> Path:
    """runs/<recipe>; a recipe that is changed on the command line gets a name of its own."""
    from hashlib import sha256

    changed = f"-{sha256(' '.join(overrides).encode()).hexdigest()[:6]}" if overrides else ""
    return Path("runs") / f"{recipe}{changed}"


def _seeds(recipe: Recipe, seed: int | None, count: int | None) -> tuple[int, ...]:
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


def _run_folder(path: Path) -> RunFolder:
    from bevkd_common.experiment.record import RunFolder

    folder = RunFolder(path)
    folder.read()
    return folder


def _accelerator(gpus: int | None):  # type: ignore[no-untyped-def]
    import torch
    from accelerate import Accelerator

    # Without a GPU it must be told so, or several processes would not find each other.
    return Accelerator(cpu=gpus == 0 or not torch.cuda.is_available())
