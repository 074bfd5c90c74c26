"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Input that cannot be used: one clear sentence that says what, where, and what to do.

    The command line prints the message alone and exits with code 2. Programming errors stay `ValueError`.
    """
