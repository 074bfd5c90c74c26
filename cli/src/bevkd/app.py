"""The `bevkd` command: its subcommands and exit codes.

Heavy packages are not imported here or at the top of a subcommand's module, so that `bevkd --help` is fast.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from bevkd_common.config.wording import shorten
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.files import DISK_TROUBLE, NAME_TROUBLE

from bevkd import config, data, doctor, plugins, recipes, run, sweep, weights
from bevkd.launcher import end

app = typer.Typer(
    name="bevkd",
    help="Distil bird's-eye-view 3D detectors, and report the gain.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: the import of rich would take longer than all others.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("train")(run.train)
app.command("eval")(run.evaluate)
app.command("report")(run.report)
app.command("ablate")(run.ablate)
app.command("sweep")(sweep.sweep)
app.add_typer(recipes.app, name="recipes")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.command("plugins")(plugins.plugins)
app.command("doctor")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors that the user can correct end with one message and exit code 2."""
    # Read by libgomp when torch is imported. Waiting threads that spin occupy cores that other processes need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _check_names(sys.argv[1:] if arguments is None else arguments)
        app(arguments, prog_name="bevkd")
    except UserError as error:
        raise end(str(error), 2, "red") from None
    except TrainingStoppedError as stopped:
        # The exit code that a shell reports for a process ended by a signal.
        raise end(str(stopped), 128 + (stopped.signal or signal.SIGINT), "yellow") from None
    except OSError as error:
        if error.errno in NAME_TROUBLE:
            path = shorten(str(error.filename))
            raise end(f"{path}: {error.strerror}; choose another path", 2, "red") from None
        if error.errno not in DISK_TROUBLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise end(f"{where}{error.strerror}; correct that and run the same command again", 2, "red") from None


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse text that no file of a run could store, and a folder that is gone.

    Raises:
        UserError: If an argument or the current folder is not Unicode text, or the folder does not exist.
    """
    try:
        names = [*arguments, str(Path.cwd())]
    except FileNotFoundError:
        raise UserError("the current folder has been removed: change to another one") from None
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = shorten(name)
            raise UserError(f"{shown} is not Unicode text: rename the file, or write the value in UTF-8") from None
