"""What a command can't do, as errors that are shown in one sentence."""


class CommandError(Exception):
    """Base of the tree. `status` is the HTTP status that the service has for its like, `code` a stable name."""

    status: int = 500
    code: str = "command_error"


class UsageProblem(CommandError, ValueError):
    """Something on the command line, or in a file it names, that can't work."""

    status = 400
    code = "usage"


class NeedsFullPackage(UsageProblem):
    """What only the full package can do."""

    code = "needs_full_package"
