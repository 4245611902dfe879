"""The options that describe a job, declared once for every command that takes a job."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from tuneyard_cli.submission import Submission
    from tuneyard_wire.fields import Strategy

P = ParamSpec("P")
R = TypeVar("R")

_FILE = typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML or JSON with fields of either API.")
_CONFIG = typer.Option(metavar="ID|NAME", help="Start from this saved configuration; the other options override it.")
_SET = typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of either API, as YAML; may be repeated.")
_STRICT = typer.Option(
    "--strict/--no-strict", help="Refuse a job that is known to fail, such as one with a missing model, or only warn."
)
_METADATA = typer.Option(metavar="KEY=VALUE", help="A label; may be repeated.")
_EVENT = typer.Option(metavar="started|checkpoint", help="Call the webhook for this too; may be repeated.")
_DATASET = typer.Option(
    help="NAME@REVISION in the registry, or a REVISION of --config's or else the default dataset. "
    "For a file or a Hub dataset: --set dataset_name=..."
)


@dataclass(frozen=True)
class JobOptions:
    """A job as the options of a command describe it."""

    model: Annotated[str | None, typer.Option(help="Base model.")] = None
    dataset: Annotated[str | None, _DATASET] = None
    name: Annotated[str | None, typer.Option(help="The adapter's name in the registry.")] = None
    template: Annotated[str | None, typer.Option(help="Chat template.")] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many optimizer steps.")] = None
    max_samples: Annotated[int | None, typer.Option(help="Train on at most this many rows.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Rows per device and step.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    cutoff_len: Annotated[int | None, typer.Option(help="Maximum row length in tokens.")] = None
    lora_r: Annotated[int | None, typer.Option(help="LoRA rank.")] = None
    tracking: Annotated[Literal["mlflow", "wandb"] | None, typer.Option(help="Where metrics are shown.")] = None
    webhook: Annotated[str | None, typer.Option(help="URL to call when the job has ended.")] = None
    webhook_event: Annotated[list[str] | None, _EVENT] = None
    priority: Annotated[Literal["high", "normal", "low"] | None, typer.Option(help="Priority in the queue.")] = None
    metadata: Annotated[list[str] | None, _METADATA] = None
    file: Annotated[Path | None, _FILE] = None
    config: Annotated[str | None, _CONFIG] = None
    set_: Annotated[list[str] | None, _SET] = None
    reject: Annotated[bool, typer.Option("--reject", help="Fail if another job is running or queued.")] = False
    strict: Annotated[bool, _STRICT] = True

    @property
    def strategy(self) -> "Strategy":
        """What to do when another job is running."""
        return "reject" if self.reject else "queue"

    def build(self) -> "Submission":
        """The job. Raises UsageProblem."""
        from tuneyard_cli.submission import build_submission, read_settings
        from tuneyard_cli.values import read_mapping, read_pairs

        options = {
            "model_name": self.model,
            "dataset_version": self.dataset,
            "lora_name": self.name,
            "template": self.template,
            "num_epochs": self.epochs,
            "max_steps": self.max_steps,
            "max_samples": self.max_samples,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "cutoff_len": self.cutoff_len,
            "lora_r": self.lora_r,
            "tracking_backend": self.tracking,
            "webhook_url": self.webhook,
            "webhook_events": self.webhook_event or None,
            "priority": self.priority,
            "metadata": read_pairs("--metadata", self.metadata or []) or None,
        }
        settings = read_settings(read_pairs("--set", self.set_ or []))
        return build_submission(read_mapping(self.file) if self.file else {}, options, settings, self.config)


def takes_job_options(command: Callable[Concatenate[JobOptions, P], R]) -> Callable[..., R]:
    """Give a command, whose first parameter is a JobOptions, each of its fields as an option."""
    hints = get_type_hints(JobOptions, include_extras=True)
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(JobOptions)
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*signature.parameters.values()][1:]]

    @functools.wraps(command)
    def run(**values: Any) -> R:
        options = JobOptions(**{one.name: values.pop(one.name) for one in shared})
        return command(options, **values)  # type: ignore[call-arg]  # what is left are its own

    run.__signature__ = signature.replace(parameters=[*shared, *own])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*shared, *own)}
    return run
