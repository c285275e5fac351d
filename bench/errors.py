"""The ways in which a run, or a cell of it, ends early on purpose."""


class UsageError(ValueError):
    """Something asked for cannot be done: one line says what, what exists, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class NotRunError(UsageError):
    """A cell lacks something that only the world outside has, such as published weights.

    Raised while a cell runs. The others go on; tables say "not run", and why.
    """


NOT_RUN = f"{NotRunError.__name__}: "
"""How the last line of such a cell's `error` begins."""


class DivergedError(RuntimeError):
    """A network that others depend on has weights that are no numbers; nothing comes of it."""


class Stopped(Exception):
    """The time limit was reached; everything up to the last checkpoint is on disk."""
