"""The options that describe a job, for every command that takes a job.

Fields of a job that `tuneyard_wire.fields` gives a `Flag` have an option by their type; the others go through `--set`.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as read_hints

import typer

from tuneyard_wire.fields import Flag, OptionFields, Strategy, TrainingFields

if TYPE_CHECKING:
    from tuneyard_cli.submission import UnsentJob

P = ParamSpec("P")
R = TypeVar("R")

_FILE = typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML or JSON with fields of either API.")
_CONFIG = typer.Option(metavar="ID|NAME", help="Start from this saved configuration; the other options override it.")
_SET = typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of either API, as YAML; may be repeated.")
_STRICT = typer.Option(
    "--strict/--no-strict", help="Refuse a job that is known to fail, such as one with a missing model, or only warn."
)


@dataclass(frozen=True)
class JobArguments:
    """A job as described by the options of a command.

    Attributes:
        flags: The values given for the options of the flagged fields, by field; None or [] if none was given.
    """

    flags: Mapping[str, Any]
    file: Annotated[Path | None, _FILE] = None
    config: Annotated[str | None, _CONFIG] = None
    set_: Annotated[list[str] | None, _SET] = None
    reject: Annotated[bool, typer.Option("--reject", help="Fail if another job is running or queued.")] = False
    strict: Annotated[bool, _STRICT] = True

    @property
    def strategy(self) -> Strategy:
        """What to do when another job is running."""
        return "reject" if self.reject else "queue"

    def build(self) -> "UnsentJob":
        """The job. Raises UsageProblem."""
        from tuneyard_cli.submission import build_submission, read_settings
        from tuneyard_cli.values import read_mapping, read_pairs

        options = {one.field: one.read(self.flags[one.field]) for one in flagged_fields()}
        settings = read_settings(read_pairs("--set", self.set_ or []))
        return build_submission(read_mapping(self.file) if self.file else {}, options, settings, self.config)


@dataclass(frozen=True)
class FlaggedField:
    """A field with its own option.

    Attributes:
        kind: The field's type without None, as which the option's text is parsed; of several types the first.
    """

    field: str
    kind: Any
    flag: Flag

    @property
    def option(self) -> str:
        """The option's spelling, such as `--max-steps`."""
        return self.flag.name or f"--{self.field.replace('_', '-')}"

    @property
    def parameter(self) -> inspect.Parameter:
        """The command's parameter for this field."""
        annotation, metavar, help_text = self.kind, None, self.flag.help
        if get_origin(self.kind) in (Sequence, Mapping):
            annotation, help_text = list[str], f"{help_text} May be repeated."
            metavar = "KEY=VALUE" if self._is_mapping else _show_values(*get_args(self.kind))
        option = typer.Option(self.option, metavar=metavar, help=help_text)
        return _option_parameter(self.field, Annotated[annotation | None, option], None)

    def read(self, given: Any) -> Any:
        """The field's value; None if none was given. Raises UsageProblem."""
        from tuneyard_cli.values import read_pairs

        if self._is_mapping:
            given = read_pairs(self.option, given or [])
        return None if given in ([], {}) else given

    @property
    def _is_mapping(self) -> bool:
        return get_origin(self.kind) is Mapping


def flagged_fields() -> Iterator[FlaggedField]:
    """The fields that `Flag` marks: what is trained, then the options around it."""
    hints = read_hints(TrainingFields, include_extras=True)
    for name in sorted(hints, key=lambda name: name in OptionFields.__annotations__):
        if get_origin(hints[name]) is Annotated:
            kind, flag = get_args(hints[name])
            yield FlaggedField(name, _first_type(kind), flag)


def _first_type(kind: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next(one for one in kinds if one is not NoneType)


def _show_values(kind: Any) -> str | None:
    """`a|b`; typer has no choices for options that may be repeated, so the service checks them."""
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else None


def _option_parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def takes_job_options(command: Callable[Concatenate[JobArguments, P], R]) -> Callable[..., R]:
    """Give a command, whose first parameter is JobArguments, the options of the flagged fields and its other fields."""
    hints = read_hints(JobArguments, include_extras=True)
    flagged = [one.parameter for one in flagged_fields()]
    shared = [_option_parameter(one.name, hints[one.name], one.default) for one in fields(JobArguments)[1:]]
    signature = inspect.signature(command, eval_str=True)
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*signature.parameters.values()][1:]]

    @functools.wraps(command)
    def run(**values: Any) -> R:
        flags = {one.name: values.pop(one.name) for one in flagged}
        options = JobArguments(flags, **{one.name: values.pop(one.name) for one in shared})
        return command(options, **values)  # type: ignore[call-arg]  # what is left are its own

    parameters = [*flagged, *shared, *own]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
