"""The two ways a run ends early on purpose."""


class UsageError(ValueError):
    """Something asked for cannot be done: one line says what, what exists, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Stopped(Exception):
    """The time limit was reached; everything up to the last checkpoint is on disk."""
