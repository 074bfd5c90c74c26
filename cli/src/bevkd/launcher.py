"""The parent of several processes: torchrun, with the exit code and the one message of the command.

Each process writes how it ended into a folder; torchrun's own report of a failed process is not shown.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

OUTCOMES = "BEVKD_OUTCOMES"
"""Environment variable: folder in which each process writes how it ended."""


def end(message: str, code: int, color: str) -> SystemExit:
    """Print why the command ends, or leave it to the parent of several processes."""
    folder = os.environ.get(OUTCOMES)
    if folder is None or not Path(folder).is_dir():
        typer.secho(message, fg=color, err=True)
    else:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        content = json.dumps({"message": message, "code": code, "color": color})
        Path(folder, f"{rank:06d}.json").write_text(content, encoding="utf-8")
    return SystemExit(code)


def main(arguments: Sequence[str]) -> None:
    """Run torchrun in this process.

    Args:
        arguments: Of torchrun.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Nothing but torchrun logs in this process.
    logging.disable(logging.CRITICAL)
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ[OUTCOMES] = folder
        try:
            run.run(run.parse_args(list(arguments)))
        except ChildFailedError as error:
            first = error.get_first_failure()[1]
            # A process that a signal ended has the negative number of the signal.
            code = 128 - first.exitcode if first.exitcode < 0 else first.exitcode or 1
        except SignalException as error:
            code = 128 + int(error.sigval)
        except KeyboardInterrupt:
            code = 130
        del os.environ[OUTCOMES]
        outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    # An error in one process stops the others.
    outcomes.sort(key=lambda outcome: outcome["code"] != 2)
    if outcomes:
        raise end(**outcomes[0])
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
