"""Every pair of teacher and student that a method has on the synthetic world, as a table.

    python benchmarks/pairs.py --seeds 3 --runs runs

Writes `pairs.md` and `pairs.json`: the main metric of teacher, student alone and distilled student, and the gain,
mean and standard deviation over the seeds, each of which has a world of its own. Stages are shared between pairs
and with other runs in the same folder, and an interrupted table goes on.
"""

import argparse
from pathlib import Path

from accelerate import Accelerator
from bevkd_common.config.recipes import Choice, catalogue
from bevkd_common.experiment.request import Request
from bevkd_common.experiment.run import run_experiment
from bevkd_common.experiment.sweep import Point, collect, write_table
from bevkd_common.progress import ConsoleReporter


def main() -> None:
    """Train what is not trained yet, print the table, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="distillbev")
    parser.add_argument("--students", nargs="*", help="some of the students; all of them")
    parser.add_argument("--seeds", type=int, default=3, help="how many of each recipe's seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("pairs"), help="folder for the two files")
    arguments = parser.parse_args()
    points, seeds = [], set()
    for pair in catalogue().pairs:
        chosen = pair.head.selects
        wanted = not arguments.students or chosen.student in arguments.students
        if arguments.method in pair.sections and chosen.dataset == "synthetic" and wanted:
            recipe = Choice((arguments.method,), pair).load()
            values = {"teacher": chosen.teacher, "student": chosen.student}
            points.append(Point(values, recipe, arguments.runs / f"pairs-{chosen.teacher}-{chosen.student}"))
            seeds.add(recipe.seeds[: arguments.seeds])
    if len(seeds) != 1:
        raise SystemExit(f"{len(points)} recipes with {len(seeds)} different lists of seeds")
    numbers, reporter, accelerator = seeds.pop(), ConsoleReporter(), Accelerator(cpu=True)
    for point in points:
        request = Request(out=point.out, data_root=None, seeds=numbers)
        run_experiment(point.recipe, request, reporter, accelerator)
    metric, rows = collect(points, numbers, data_root=None, reporter=reporter, accelerator=accelerator)
    for line in write_table(metric, rows, arguments.output, "pairs"):
        print("  ".join(f"{cell:>16}" for cell in line))


if __name__ == "__main__":
    main()
