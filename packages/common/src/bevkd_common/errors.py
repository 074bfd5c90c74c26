"""The exceptions that a user is meant to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UserError(Exception):
    """Input that cannot be used: one clear sentence that says what, where, and what to do.

    The command line prints the message alone and exits with code 2. Programming errors stay `ValueError`.
    """


class CannotWriteError(UserError, OSError):
    """A file or folder that the user named, or that lies under one, cannot be written.

    Args:
        path: The file.
        cause: What the operating system answered.
    """

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror, str(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (Path(self.filename), OSError(self.errno, self.strerror))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written ({self.strerror}): correct that, and run the same command again"


class TrainingStoppedError(Exception):
    """A training was stopped on request, and its checkpoint is written.

    Attributes:
        signal: The signal that asked for it; 0 where another process of the run got it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
