"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """Input that cannot be used: one clear sentence that says what, where, and what to do.

    The command line prints the message alone and exits with code 2. Programming errors stay `ValueError`.
    """


class TrainingStoppedError(Exception):
    """A training was stopped on request, and its checkpoint is written.

    Attributes:
        signal: The signal that asked for it; 0 where another process of the run got it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
