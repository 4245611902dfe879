"""Adds the base model in a folder of this machine to a service, by the shortest way: a link, a copy or an upload."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tuneyard_cli.machine import this_machine
from tuneyard_cli.output import open_console, print_line, print_warnings
from tuneyard_cli.problems import UsageProblem
from tuneyard_wire.base_models import Model
from tuneyard_wire.model_folder import (
    MODEL_NAME_RULE,
    How,
    complete_name,
    derive_name,
    explain_no_model,
    is_model_folder,
    is_model_name,
    select_files,
)

if TYPE_CHECKING:
    from tuneyard_cli.submission import UnsentJob
    from tuneyard_client import Tuneyard
    from tuneyard_client.model_calls import ReadFolder

MODEL_FIELDS = ("model_name", "base_model")
MB = 1e6
SHOWN_NAMES = 5


@dataclass(frozen=True)
class AddedModel:
    """A model that a service has now.

    Attributes:
        how: what was done, for people.
        left_out: entries of the folder that were not copied or sent.
    """

    model: Model
    how: str
    left_out: tuple[str, ...] = ()

    def tell(self) -> None:
        """Print on stderr what was done, and what is wrong with the model."""
        print_line(f"base model {self.model.name}: {self.how}", err=True)
        if self.left_out:
            more = f" and {len(self.left_out) - SHOWN_NAMES} more" if len(self.left_out) > SHOWN_NAMES else ""
            print_line(
                f"  left out, as training does not read it: {', '.join(self.left_out[:SHOWN_NAMES])}{more}", err=True
            )
        if self.model.problem:
            print_warnings([self.model.problem])


def settle_model(job: "UnsentJob", client: "Tuneyard | None") -> "UnsentJob":
    """Add the model of a job that names a folder, and name the model in its place; echoes the name.

    Args:
        client: the service to add it to; None for this machine without a service.
    """
    field = next((name for name in MODEL_FIELDS if isinstance(job.fields.get(name), str)), None)
    folder = _find_folder(str(job.fields[field]), client) if field else None
    if field is None or folder is None:
        return job
    added = add_model(client, folder)
    added.tell()
    return replace(job, fields={**job.fields, field: added.model.name})


def add_model(client: "Tuneyard | None", folder: Path, name: str | None = None, how: How = "auto") -> AddedModel:
    """Add the model in a folder.

    A service on this machine with this installation's model root gets a link or a copy, any other one an upload.

    Args:
        name: None for the folder's own, with a suffix if another model has that.

    Raises:
        UsageProblem: the folder has no base model, the name can't be used, or `how` needs a service on this machine.
        ClientError, or an error of the service's: see `tuneyard_client` and `jobs.base_models.publishing`.
    """
    if (lack := explain_no_model(folder)) is not None:
        raise UsageProblem(f"{str(folder)!r:.300} {lack}")
    if name is not None and not is_model_name(complete_name(name)):
        raise UsageProblem(f"--name {MODEL_NAME_RULE}; ORG/ may be left out, got {name!r:.200}")
    names = [*_candidates(folder)] if name is None else [complete_name(name)]
    root_id = client.base_models.root_id() if client else None
    if client is None or (root_id is not None and this_machine().model_root_id() == root_id):
        return _add_here(client, folder, names, how)
    if how != "auto":
        raise UsageProblem(f"--{how} needs the service on this machine; without it the model is uploaded")
    return _upload(client, folder, names)


def _add_here(client: "Tuneyard | None", folder: Path, names: list[str], how: How) -> AddedModel:
    values, is_new, left_out = this_machine().add_model(folder, names, how)
    model = Model.model_validate(values)
    if client is not None:
        model = client.base_models.get(model.name)  # as the service sees it, whose allowed roots may be others
    if not is_new:
        return AddedModel(model, f"added before, from {folder}")
    if model.kind == "link":
        return AddedModel(model, f"refers to {model.path}; changes there change the model (--copy copies it)", left_out)
    return AddedModel(model, f"copied from {folder} ({model.bytes / MB:.0f} MB)", left_out)


def _upload(client: "Tuneyard", folder: Path, names: list[str]) -> AddedModel:
    from tuneyard_client.model_calls import read_folder

    read = read_folder(folder)
    total = sum(file.bytes for file in read.files)
    with _UploadBar(folder, total) as bar:
        model = _send(client, read, names, bar)
    done = "uploaded" if bar.has_sent or not total else "uploaded before,"
    return AddedModel(model, f"{done} from {folder} ({total / MB:.0f} MB)", read.left_out)


def _send(client: "Tuneyard", read: "ReadFolder", names: list[str], bar: "_UploadBar") -> Model:
    """Upload it under the first of these names that no other model has."""
    from tuneyard_client.errors import Conflict

    for name in names[:-1]:
        try:
            return client.base_models.send(read, name, bar.show)
        except Conflict as error:
            if error.code != "model_exists":
                raise
    return client.base_models.send(read, names[-1], bar.show)


class _UploadBar:
    """A bar on a terminal's stderr."""

    def __init__(self, folder: Path, total: int) -> None:
        from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

        console = open_console(stderr=True)
        columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._bar = self._bars.add_task("uploading", total=total)
        self.has_sent = False

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, sent: int, _total: int) -> None:
        """Show how many bytes have arrived."""
        self.has_sent = True
        self._bars.update(self._bar, completed=sent)


def _candidates(folder: Path) -> Iterator[str]:
    """Names for a folder's model: the folder's own, and one that changes with its files, should that be taken."""
    name = derive_name(folder.resolve())
    yield name
    facts = [(path, (folder / path).stat()) for path in select_files(folder).files]
    state = repr([(path, found.st_size, found.st_mtime_ns) for path, found in facts])
    yield f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def _find_folder(named: str, client: "Tuneyard | None") -> Path | None:
    """The folder that `--model` names: by a path, or by a name that no model of the service has."""
    folder = Path(named).expanduser() if named.startswith("~") else Path(named)
    if named.startswith(("/", "./", "../", "~")) or named in (".", ".."):
        return folder
    if client is None or not is_model_folder(folder):
        return None
    from tuneyard_client.errors import InvalidRequest, NotFound

    try:
        client.base_models.get(named)
    except (NotFound, InvalidRequest):
        return folder
    return None
