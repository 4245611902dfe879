"""End commands of `tuneyard`: exit codes, errors as one line or JSON, no traceback for a closed pipe."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from tuneyard_cli.machine import INSTALL, SERVICE_COMMANDS, this_machine
from tuneyard_cli.problems import CommandError, NeedsFullPackage, UsageProblem
from tuneyard_wire.one_line import escape


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNAVAILABLE = 4
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.JOB_FAILED: "the job failed or was cancelled, or `doctor` found a problem",
    ExitCode.USAGE: "wrong usage: an option, a file or an ambiguous id",
    ExitCode.REFUSED: "refused by the service, or nothing has this id",
    ExitCode.UNAVAILABLE: "the service cannot be reached or failed, or the disk is full; retrying may help",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
    ExitCode.PIPE_CLOSED: "the reader of the output closed it",
}
EPILOG = "Exit codes:\n\n" + "\n\n".join(f"{code.value}  {meaning}" for code, meaning in MEANINGS.items())

RATE_LIMITED = 429
MOST_COLUMNS = 1000  # of a help text, whose time and memory grow with its width
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # of the output
_USAGE_CODES = (
    "folder_exists",
    "folder_unwritable",
    "invalid_api_key",
    "invalid_id",
    "invalid_proxy",
    "invalid_request",
    "invalid_url",
)


class CommandGroup(TyperGroup):
    """The group of all commands; turns their errors into a message and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit with its code."""
        given = list(sys.argv[1:] if args is None else args)
        rest = {"complete_var": complete_var, "windows_expand_args": windows_expand_args, **extra}
        if not standalone_mode:
            return super().main(given, prog_name, standalone_mode=False, **rest)
        _open_closed_streams()
        _replace_unencodable()
        _bound_sizes()
        code: Any
        try:
            code = self._run(given, prog_name, rest)
        except BrokenPipeError:
            code = _end_pipe()
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            code = _end_unwritable(error)
        _flush_errors()
        sys.exit(int(code or 0))

    def _run(self, given: list[str], prog_name: str | None, rest: dict[str, Any]) -> Any:
        """Run a command; returns its exit code. Raises OSError for output that can't be written."""
        try:
            code = super().main(given, prog_name, standalone_mode=False, **rest)
            sys.stdout.flush()
        except TyperException as error:
            code = _end_usage(error, "--json" in given)
        except _reported_errors() as error:
            code = _end_error(error, "--json" in given)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except SystemExit as end:
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            raise end.__context__ from None  # Typer exits with 1 if it is closed while it prints a help text
        return code

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command. Raises NeedsFullPackage if only the full package has it."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in SERVICE_COMMANDS:
            raise NeedsFullPackage(f"`tuneyard {cmd_name}` runs on the service's machine; {INSTALL}")
        return found

    def invoke(self, ctx: Any) -> Any:
        """Run a command. A closed pipe exits with PIPE_CLOSED, which Typer would report as a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(_end_pipe()) from None
        except Exception as error:
            if problem := this_machine().explain(error):
                raise problem from error
            raise


def _reported_errors() -> tuple[type[Exception], ...]:
    """The errors that are shown as a message. ClientError is imported only once there is an error."""
    from tuneyard_client.errors import ClientError

    return CommandError, ClientError, *this_machine().errors()


def exit_code_of(error: Any) -> ExitCode:
    """The exit code of an error."""
    from tuneyard_client.errors import ChecksumMismatch, ServiceUnreachable, UnexpectedResponse

    if isinstance(error, UsageProblem) or (error.code in _USAGE_CODES and not error.status):
        return ExitCode.USAGE
    if isinstance(error, ServiceUnreachable | UnexpectedResponse | ChecksumMismatch) or error.code == "disk_full":
        return ExitCode.UNAVAILABLE
    is_temporary = error.status >= 500 or error.status == RATE_LIMITED
    return ExitCode.UNAVAILABLE if is_temporary else ExitCode.REFUSED


def fail(message: str) -> NoReturn:
    """End the command with exit code USAGE."""
    raise UsageProblem(message)


def _end_error(error: Any, as_json: bool) -> ExitCode:
    request_id = getattr(error, "request_id", None)
    if as_json:
        _print_error(str(error), error.code, request_id)
    else:
        first, *more = str(error).splitlines() or [type(error).__name__]
        is_list = any(line.startswith(" ") for line in more)
        note = f" (request {escape(request_id)})" if request_id and error.status >= 500 else ""
        text = "\n".join(map(escape, [first, *more])) if is_list else "; ".join(map(escape, [first, *more]))
        typer.echo(f"tuneyard: {text}{note}", err=True)
    return exit_code_of(error)


def _end_usage(error: TyperException, as_json: bool) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
        typer.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    message = " ".join(error.format_message().split())
    if as_json:
        _print_error(message, UsageProblem.code, None)
    else:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "tuneyard"
        typer.echo(f"tuneyard: {escape(message)}\nTry `{command} --help`.", err=True)
    return ExitCode.USAGE


def _print_error(detail: str, code: str, request_id: str | None) -> None:
    """Print one line of JSON with the keys of the service's errors."""
    typer.echo(json.dumps({"detail": detail, "code": code, "request_id": request_id}), err=True)


def _end_pipe() -> ExitCode:
    """Discard buffered output, since the reader closed the pipe."""
    _discard(sys.stdout)
    return ExitCode.PIPE_CLOSED


def _end_unwritable(error: OSError) -> ExitCode:
    _discard(sys.stdout)
    with suppress(OSError):
        typer.echo(f"tuneyard: {error.filename or 'the output'} can't be written: {error.strerror}", err=True)
    return ExitCode.UNAVAILABLE


def _flush_errors() -> None:
    """Discard messages that can't be written, else Python would end with a code of its own."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """Discard what is written to a stream that was closed at the start (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open until the process ends


def _bound_sizes() -> None:
    """Correct the variables by which Typer and rich size what they print: they take any digits, as wide as they say."""
    for name in {"COLUMNS", "LINES", "TERMINAL_WIDTH"} & os.environ.keys():
        digits = os.environ[name].strip().lstrip("0")
        if not (digits.isascii() and digits.isdigit()):
            del os.environ[name]  # as if it were not set
        elif len(digits) > len(str(MOST_COLUMNS)) or int(digits) > MOST_COLUMNS:
            os.environ[name] = str(MOST_COLUMNS)


def _replace_unencodable() -> None:
    r"""Print characters that the terminal's encoding lacks as `\uXXXX`, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
