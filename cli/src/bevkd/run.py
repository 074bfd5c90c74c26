"""`bevkd run`, `train`, `eval`, `report`, `ablate`: experiments from start to report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bevkd.display import print_table, progress_reporter
from bevkd.options import (
    DataRoot,
    DatasetName,
    Gpus,
    Jobs,
    Method,
    MethodOrNone,
    Nodes,
    Out,
    Overrides,
    RecipeOption,
    Restart,
    RunPath,
    Seed,
    Seeds,
    Student,
    Teacher,
    accelerator_of,
    default_out,
    launch,
    resolve_recipe,
    seeds_of,
)

if TYPE_CHECKING:
    from bevkd_common.config.recipe import Recipe
    from bevkd_common.experiment.measure import Estimate
    from bevkd_common.experiment.record import RunFolder
    from bevkd_common.experiment.request import Request


def run(
    method: MethodOrNone = None,
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    seeds: Seeds = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    jobs: Jobs = None,
    restart: Restart = False,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Leave out the baseline, and thus the comparison.")
    ] = False,
    verify_data: Annotated[
        bool,
        typer.Option("--verify-data", help="Read every sensor file first, and use no stage whose files changed."),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Measure two real steps of each training, print time and memory, and stop."),
    ] = False,
) -> None:
    """Run a whole experiment: data, teacher, student alone, student distilled, scores, report."""
    from bevkd_common.experiment.request import Request, repeated

    chosen, loaded = resolve_recipe(method, teacher, student, dataset, recipe, overrides)
    before = None if recipe is None else repeated(Path(recipe))
    named = default_out(chosen, overrides) if before is None or overrides else _repeated_out(before.out)
    several = seed is None and seeds is None and before is not None
    request = Request(
        out=out or named,
        data_root=data_root or (before.data_root if before else None),
        seeds=before.seeds if several and before else seeds_of(loaded, seed, seeds),
        controls=seeds is not None or bool(several and before and before.controls),
        ablations=before.ablations if before else (),
        baseline=not no_baseline and (before is None or before.baseline),
        restart=restart,
        verify_data=verify_data,
    )
    if plan:
        _print_plan(loaded, request, gpus)
        return
    _start(gpus, nodes, jobs)
    _experiment(loaded, request, gpus, jobs)


def _repeated_out(run: Path) -> Path:
    """`runs/NAME`, or the run itself for a command that is started inside its folder."""
    return run if Path.cwd().is_relative_to(run.resolve()) else Path("runs") / run.name


def ablate(
    method: Method,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ABLATION]...", help="Some of the method's ablations; all by default."),
    ] = None,
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    jobs: Jobs = None,
    restart: Restart = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the method's ablations and stop.")] = False,
) -> None:
    """Train the recipe itself and a method's own ablations; teacher and baseline are shared."""
    from bevkd_common.config.methods import ablations, published_ablations
    from bevkd_common.config.published_rows import in_one_line
    from bevkd_common.config.recipes import method_kinds

    kinds = method_kinds(method)
    found = ablations(kinds)
    if list_only:
        paper = {name: f"{row.setting}: {in_one_line([row])}" for name, row in published_ablations(kinds).items()}
        rows = [(name, row.summary, paper.get(name, "")) for name, row in found.items()]
        print_table(("ablation", "what changes", "paper"), rows)
        return
    from bevkd_common.experiment.request import Request

    chosen, loaded = resolve_recipe(method, teacher, student, dataset, recipe, overrides)
    request = Request(
        out=out or Path(f"{default_out(chosen, overrides)}-ablation"),
        data_root=data_root,
        seeds=seeds_of(loaded, seed, None),
        ablations=tuple(names or found),
        restart=restart,
    )
    _start(gpus, nodes, jobs)
    _experiment(loaded, request, gpus, jobs)


def train(
    method: MethodOrNone = None,
    arm: Annotated[
        str, typer.Option(help="teacher, baseline, distilled, a control, an ablation, or a pretraining.")
    ] = "baseline",
    teacher: Teacher = None,
    student: Student = None,
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the stage is stored next to it, in .stages.")
    ] = None,
    seed: Seed = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
) -> None:
    """Train and score one arm of a recipe, and the teacher if it needs one; `run` reuses the stages."""
    from bevkd_common.experiment.execution import train_one

    chosen, loaded = resolve_recipe(method, teacher, student, dataset, recipe, overrides)
    launch(gpus, nodes)
    root = (out or default_out(chosen, overrides)).parent
    reporter = progress_reporter()
    folder = train_one(
        loaded,
        arm,
        runs=root,
        data_root=data_root,
        seed=seeds_of(loaded, seed, None)[0],
        reporter=reporter,
        accelerator=accelerator_of(gpus),
    )
    reporter.say(str(folder))


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="Folder of a run, or a submission file of any tool.")
    ],
    gpus: Gpus = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="For a run: folder for the official submission files, one per model and seed."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set, for a file or for --split.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Version folder, for a file (needed only if there are several) or for --split."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="For a file: its split, val by default. With --submission: the split to submit, such as `test`."
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="For a file: `ours`, or another engine of the data set, such as `devkit`.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="For a file: JSON file for all scores.")] = None,
) -> None:
    """Score every trained model of a run again, or a submission; exit code 2 if its convention is wrong."""
    from bevkd_common.errors import UserError

    if path.is_file():
        _refuse_flags(f"{path} is a file", {"--gpus": gpus, "--submission": submission})
        _evaluate_submission(path, data_root, version, split or "val", engine or "ours", results)
        return
    if not path.is_dir():
        raise UserError(f"{path} does not exist: name the folder of a run, or the file of a submission")
    _refuse_flags(f"{path} is a run", {"--engine": engine, "--results": results})
    other = {"--data-root": data_root, "--version": version}
    if submission is None:
        _refuse_flags("a run is scored on its own data, without --submission", other | {"--split": split})
    if split is None:
        _refuse_flags("a run has data of its own, without --split", other)
    from bevkd_common.experiment.finished import OtherSplit, score_again, write_submissions

    launch(gpus)
    folder, reporter, accelerator = _run_folder(path), progress_reporter(), accelerator_of(gpus)
    if split is None:
        score_again(folder, reporter, accelerator)
    if submission is not None:
        chosen = None if split is None else OtherSplit(split, version, data_root)
        write_submissions(folder, reporter, accelerator, submission, chosen)


def report(run_folder: RunPath, gpus: Gpus = None) -> None:
    """Write the report of a run again."""
    from bevkd_common.errors import UserError

    if gpus is not None and gpus > 1:
        raise UserError(f"--gpus {gpus}: one process writes a report; set 0 or 1, or leave it out")
    _write_report(_run_folder(run_folder), gpus)


def _refuse_flags(why: str, flags: Mapping[str, object]) -> None:
    """Raise an error for flags that would be ignored."""
    from bevkd_common.errors import UserError

    given = [name for name, value in flags.items() if value is not None]
    if given:
        raise UserError(f"{why}: leave out {', '.join(given)}")


def _evaluate_submission(
    path: Path, data_root: Path | None, version: str | None, split: str, engine: str, results: Path | None
) -> None:
    from bevkd_common.config.plugins import load, recognized
    from bevkd_common.errors import UserError

    if data_root is None:
        raise UserError(f"{path} is a file: name the folder of its data set with --data-root")
    if engine != "ours" and results is not None:
        raise UserError(f"--results holds our own scores: leave out --engine {engine}, or --results")
    if results is not None and not results.parent.is_dir():
        raise UserError(f"--results {results}: there is no folder {results.parent}")
    tools = recognized(data_root)
    if tools.score_file is None:
        raise UserError(f"{path} is a file: the data set in {data_root} has no format for files of detections")
    scored = load(tools.score_file)(
        path, data_root, version=version, split=split, engine=engine, reporter=progress_reporter()
    )
    typer.echo("  ".join(f"{name} {value:.4f}" for name, value in scored.headline.items()))
    if scored.rows:
        print_table(scored.columns, scored.rows)
    if results is not None and scored.results is not None:
        from bevkd_common.engine.checkpoint import write_atomically

        write_atomically(results, scored.results.to_json())
    if scored.findings:
        raise UserError("\n".join(scored.findings))


def _start(gpus: int | None, nodes: int | None, jobs: int | None) -> None:
    """Start the processes of a stage, if it has several."""
    from bevkd_common.errors import UserError

    if (gpus or 1) * (nodes or 1) > 1 and jobs is not None and jobs > 1:
        raise UserError(f"--jobs {jobs}: a stage of several processes is trained alone; leave out --jobs or --gpus")
    launch(gpus, nodes)


def _experiment(recipe: Recipe, request: Request, gpus: int | None, jobs: int | None) -> None:
    from bevkd_common.experiment.run import run_experiment

    folder = run_experiment(recipe, request, progress_reporter(), accelerator_of(gpus), jobs)
    _write_report(folder, gpus)


def _print_plan(recipe: Recipe, request: Request, gpus: int | None) -> None:
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.build import check_data_root
    from bevkd_common.experiment.measure import estimate, stand_in
    from bevkd_common.experiment.plan import plan_lines
    from bevkd_common.experiment.request import student_arms

    if request.data_root is not None:
        check_data_root(recipe.dataset, request.data_root)
    reporter, accelerator = progress_reporter(), accelerator_of(gpus)
    for line in plan_lines(recipe, student_arms(recipe, request), request.seeds, gpus or 1):
        reporter.say(line)
    made = stand_in(recipe, request)
    if made is not None:
        reporter.say("measured on generated samples of the same sizes; reading time and hours need --data-root")
    found = estimate(made or recipe, request, reporter, cpu=accelerator.device.type == "cpu")
    columns = ("stage", "steps", "s per step", "of which data", "hours", "peak GB", "GB per checkpoint", "fits")
    told = [column for column in columns if made is None or column not in ("steps", "of which data", "hours")]
    rows = [dict(zip(columns, _plan_row(one), strict=True)) for one in found]
    print_table(told, [[row[column] for column in told] for row in rows])
    if made is None:
        hours = sum(one.hours for one in found) * len(request.seeds)
        reporter.say(
            f"{hours:.2f} hours of training for {len(request.seeds)} seeds on one process, without scoring"
        )
    if not all(one.fits for one in found):
        names = ", ".join(one.title for one in found if not one.fits)
        raise UserError(f"{names}: more than the available {found[0].memory / 1e9:.0f} GB; lower `micro_batch`")


def _plan_row(one: Estimate) -> tuple[str, ...]:
    measured = one.rehearsal
    if measured is None:
        return (one.title, "", "", "", "", "", "", "no")
    return (
        one.title,
        str(measured.steps),
        f"{measured.step_s:.3f}",
        f"{measured.data_s:.3f}",
        f"{one.hours:.2f}",
        f"{measured.memory / 1e9:.2f}",
        f"{measured.checkpoint / 1e9:.3f}",
        "yes" if one.fits else "no",
    )


def _write_report(folder: RunFolder, gpus: int | None) -> None:
    from bevkd_common.experiment.reporting import report_input
    from bevkd_common.report.render import write_report

    accelerator = accelerator_of(gpus)
    if not accelerator.is_main_process:
        return
    reporter = progress_reporter()
    page = write_report(report_input(folder, reporter, accelerator), folder.path / "report")
    reporter.say(f"report: {page}")


def _run_folder(path: Path) -> RunFolder:
    from bevkd_common.experiment.record import RunFolder

    folder = RunFolder(path)
    folder.read()
    return folder
