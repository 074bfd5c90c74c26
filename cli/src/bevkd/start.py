"""The entry point: what must be in order before the command itself is imported.

Nothing heavy is imported here, so that Ctrl-C during the imports ends the process at once.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from types import FrameType

STREAMS = {1: "stdout", 2: "stderr"}


def main() -> None:
    """Run the command line of this process."""
    signal.signal(signal.SIGINT, _leave)
    # Called last, being registered first; the interpreter then restores the default of all handlers but this one.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    open_standard_streams()
    from bevkd.app import main as run

    try:
        signal.signal(signal.SIGINT, _interrupt)
        run()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing is open."""
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End at once during an import, which may turn an interrupt into another error; else raise the interrupt."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


def open_standard_streams() -> None:
    """Make standard output and error usable, whatever the caller has done to them.

    A closed one is replaced by the null device; otherwise the next file that is opened would take its number, and
    receive what is printed. A reader that goes away does not end a training: what is printed then is dropped.
    Characters that the encoding lacks are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for number, name in STREAMS.items():
        given = getattr(sys, name)
        if given is not None and given is not getattr(sys, f"__{name}__"):
            continue
        raw = _Output(number, "w", closefd=False)
        encoding = "utf-8" if given is None else given.encoding
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding,
            errors="backslashreplace",
            line_buffering=number == 2 or raw.isatty(),
        )
        setattr(sys, name, stream)


class _Output(io.FileIO):
    """A standard stream that outlives its reader; on standard error, any failure."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            # What is still in the buffer goes there too, also after a failure that ends the command.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if not isinstance(error, BrokenPipeError) and self.fileno() != 2:
                raise
            return super().write(data)  # type: ignore[arg-type]
