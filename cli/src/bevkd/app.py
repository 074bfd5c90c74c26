"""The `bevkd` command: which verbs there are, and how it ends.

Nothing heavy is imported here or at the top of a module of verbs, so that `bevkd --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer
from bevkd_common.errors import UserError

from bevkd import config, data, plugins, recipes, run

app = typer.Typer(
    name="bevkd",
    help="Distil bird's-eye-view 3D detectors, and report what it bought.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: rich alone would take longer to import than everything else.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("train")(run.train)
app.command("eval")(run.evaluate)
app.command("report")(run.report)
app.command("ablate")(run.ablate)
app.add_typer(recipes.app, name="recipes")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.command("plugins")(plugins.plugins)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can put right ends with one message and exit code 2."""
    try:
        app(arguments, prog_name="bevkd")
    except UserError as error:
        typer.secho(str(error), fg="red", err=True)
        raise SystemExit(2) from None
