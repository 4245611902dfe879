"""Errors of commands, each shown as a message without a traceback."""


class CommandError(Exception):
    """Base class. `status` is the HTTP status of the service's equivalent error, `code` a stable name."""

    status: int = 500
    code: str = "command_error"


class UsageProblem(CommandError, ValueError):
    """The command line, or a file that it names, is invalid."""

    status = 400
    code = "usage"


class NeedsFullPackage(UsageProblem):
    """Only the full package can do this."""

    code = "needs_full_package"
