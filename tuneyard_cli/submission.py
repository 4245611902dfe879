"""Builds a job from a file, options and `--set`, with the field names of either API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from tuneyard_cli.data_files import AUTO, PENDING, find_file, is_hub_id, is_version
from tuneyard_cli.machine import this_machine
from tuneyard_cli.problems import UsageProblem
from tuneyard_cli.values import check_json, is_null, load_yaml
from tuneyard_wire.dataset_reference import DatasetReference
from tuneyard_wire.fields import TRAINING_NAMES, SftOptions

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard
    from tuneyard_wire.fields import Strategy
    from tuneyard_wire.jobs import Submitted
    from tuneyard_wire.plan import Plan

Fields = Mapping[str, Any]

SFT_NAMES = {training: sft for sft, training in TRAINING_NAMES.items()}
# dataset_name also names files and Hub datasets, which dataset_version can't, so it is not translated back.
_TRAINING_NAMES = {sft: training for sft, training in TRAINING_NAMES.items() if sft != "dataset_name"}
# Fields that only the SFT API has.
_DATASETS = ("dataset_name", "dataset_version", "validation_dataset")
_SFT_MARKS = ("config", "config_id", "base_model", "dataset_name", "dataset_format")
# Fields of the Training API that the SFT API expresses in another way.
_TRAINING_ONLY = ("save_name", "lora_version", "logging_backend", "training_type")


@dataclass(frozen=True)
class UnsentJob:
    """A job before it is sent.

    Attributes:
        interface: The API whose field names `fields` has.
        options: What the SFT API takes beside `config`; empty for the Training API.
        revision: A revision of the saved configuration's dataset, which only the service knows.
        file: A file on this machine that is the dataset; `complete` adds it.
        finds_template: No chat template was named, so it is the model's own; `complete` says what the job sets.
    """

    interface: Literal["training", "sft"]
    fields: Fields
    options: Fields = field(default_factory=dict)
    revision: str | None = None
    file: Path | None = None
    finds_template: bool = False

    def complete(self, client: "Tuneyard") -> "UnsentJob":
        """Return a copy with the full id of the saved configuration and its dataset.

        A file is added as a version of a dataset, and a model that is named by its folder as a base model.
        """
        from tuneyard_cli.model_folders import settle_model

        return settle_model(self, client)._add_file(client)._complete_config(client)

    def _add_file(self, client: "Tuneyard") -> "UnsentJob":
        """Add the file, and say on stderr what was found in it and what the job sets."""
        from tuneyard_cli.data import describe
        from tuneyard_cli.data_files import PENDING, add_file, explain_choices
        from tuneyard_cli.output import print_line

        fields = self.fields
        if self.file is not None:
            added = add_file(client, self.file, fields)
            fields = {name: added.reference if value == str(PENDING) else value for name, value in fields.items()}
            print_line(f"{self.file} is {added.reference}{'' if added.is_new else ', as before'}", err=True)
            describe(added, err=True)
        if (self.file is not None or self.finds_template) and (chosen := explain_choices(fields, self.options)):
            print_line(chosen, err=True)
        return replace(self, fields=fields, file=None)

    def _complete_config(self, client: "Tuneyard") -> "UnsentJob":
        from tuneyard_cli.references import find_config_id

        if "config_id" not in self.options:
            return self
        config_id = find_config_id(client, self.options["config_id"])
        fields = dict(self.fields)
        if self.revision is not None:
            saved = client.configs.get(config_id).config.get("dataset_name")
            dataset = _dataset_of(saved) or this_machine().default_dataset(self.revision)
            fields["dataset_name"] = _name_dataset(dataset, self.revision)
        return replace(self, fields=fields, options={**self.options, "config_id": config_id}, revision=None)

    def send(self, client: "Tuneyard", strategy: "Strategy", strict: bool) -> "Submitted":
        """Submit the job."""
        if self.interface == "training":
            return client.submit(self.fields, strategy, strict=strict)
        return client.sft(self.fields, **self.options, strategy=strategy, strict=strict)

    def plan(self, client: "Tuneyard", device: str | None = None) -> "Plan":
        """Plan the job."""
        if self.interface == "training":
            return client.plan(self.fields, device)
        return client.plan_sft(self.fields, device=device, **self.options)


def build_submission(
    file: Fields, options: Fields, settings: Fields, config: str | None = None, require: bool = True
) -> UnsentJob:
    """Merge file, options and settings; the later one wins.

    Fields named as in the other API are translated, so that a file in either can be combined with options and a saved
    configuration.

    Args:
        file: Fields of either API, or a whole body of `POST /api/sft/train`.
        options: Fields named as in the Training API; None where an option was not given.
        settings: `--set`: fields of either API.
        config: A saved configuration to start from, as the user names it; the other fields override its own.
        require: Whether a model and a dataset must be named.

    Raises:
        UsageProblem: a name is unknown, a field is given twice, no model or dataset is named, or a value can't
            be written as JSON.
    """
    given = {name: value for name, value in options.items() if value is not None}
    dataset = given.get("dataset_version")
    path = find_file(dataset)
    if path is not None:
        given["dataset_version"] = str(PENDING)
    elif is_hub_id(dataset):
        given["dataset_name"] = given.pop("dataset_version")
    sources = [_flatten(file), given, _flatten(settings)]
    names = [
        name
        for source in (file, settings, *sources, {"config_id": config} if config is not None else {})
        for name in source
    ]
    is_sft = any(mark in names for mark in _SFT_MARKS)
    values = _join([_translate(source, SFT_NAMES if is_sft else _TRAINING_NAMES) for source in sources])
    if config is not None:
        values["config_id"] = config
    _check_config_id(values)
    template = "template_name" if is_sft else "template"
    is_own = path is not None or (not file and (is_hub_id(dataset) or is_version(dataset)))
    finds_template = is_own and "config_id" not in values and values.get(template) is None
    if finds_template:
        values[template] = AUTO
    submission = _sft_submission(values) if is_sft else UnsentJob("training", values)
    submission = replace(submission, file=path, finds_template=finds_template)
    check_json({**submission.fields, **submission.options}, "the job")
    if require and "config_id" not in submission.options:
        _require(submission)
    return submission


def read_settings(pairs: Mapping[str, str]) -> dict[str, Any]:
    """The values of `--set`: YAML scalars, lists and mappings, but text for fields that hold only text.

    A dataset's name is text too, however it looks, unless it begins a list.
    """
    values = {}
    for name, text in pairs.items():
        if _is_text(name) or (name in _DATASETS and not text.lstrip().startswith("[")):
            values[name] = None if is_null(text) else text
            continue
        try:
            values[name] = load_yaml(text)
        except UsageProblem as error:
            raise UsageProblem(f"--set {name}: {error}") from error
    return values


def _is_text(name: str) -> bool:
    """Whether a field holds only text."""
    return this_machine().fields().get(name) in (str, str | None)


def _flatten(source: Fields) -> dict[str, Any]:
    """A body of `POST /api/sft/train` with the fields of its `config` beside the others."""
    nested = source.get("config") or {}
    if not isinstance(nested, Mapping):
        raise UsageProblem(f"config must hold the fields of a configuration, got {nested!r:.80}")
    outer = {name: value for name, value in source.items() if name != "config"}
    if twice := sorted({*outer} & {*nested}):
        raise UsageProblem(f"{twice[0]} is given in config and beside it; give it once")
    return {**outer, **nested}


def _translate(source: Fields, words: Mapping[str, str]) -> dict[str, Any]:
    for name in source:
        this_machine().check_name(name)
    values: dict[str, Any] = {}
    by_name: dict[str, str] = {}
    for name, value in source.items():
        translated = words.get(name, name)
        if other := by_name.get(translated):
            raise UsageProblem(f"{other} and {name} are two names of the same field; give one")
        by_name[translated] = name
        if name == "dataset_version" and isinstance(value, str) and not value.strip():
            raise UsageProblem(f"dataset_version (--dataset) must not be blank, got {value!r}")
        if name == "dataset_version" and translated == "dataset_name" and isinstance(value, list):
            _check_named(value)
        is_reference = name == "dataset_version" and translated == "dataset_name" and isinstance(value, str)
        is_revision = is_reference and DatasetReference.parse(value).revision is None
        values[translated] = _Revision(value) if is_revision else value
    return values


def _check_named(versions: list[Any]) -> None:
    """Check that each version in a list names its dataset: it is sent as a `dataset_name`."""
    names = [one.get("name") if isinstance(one, Mapping) else one for one in versions]
    for place, name in enumerate(names):
        if isinstance(name, str) and DatasetReference.parse(name).revision is None:
            raise UsageProblem(
                f"dataset_version.{place} {name!r} is a revision without a dataset; give NAME@{name}, or all of the "
                "list as dataset_name"
            )


@dataclass(frozen=True)
class _Revision:
    """A revision of a dataset that is named elsewhere."""

    name: str


def _join(sources: Sequence[Fields]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            before = _dataset_of(values.get(name)) if isinstance(value, _Revision) else None
            values[name] = _name_dataset(before, value.name) if before and isinstance(value, _Revision) else value
    return values


def _dataset_of(reference: object) -> str | None:
    """The dataset's name in `name@revision`."""
    named = DatasetReference.parse(reference) if isinstance(reference, str) else None
    return named.name or None if named and named.revision is not None else None


def _name_dataset(name: str, revision: str) -> str:
    """Join name and revision to `name@revision`, for a revision without a dataset."""
    return str(DatasetReference.parse_version(revision, name))


def _sft_submission(values: dict[str, Any]) -> UnsentJob:
    _translate_training_only(values)
    dataset, revision = values.get("dataset_name"), None
    if isinstance(dataset, _Revision):
        del values["dataset_name"]
        if "config_id" in values:
            revision = dataset.name
        else:
            values["dataset_name"] = _name_dataset(this_machine().default_dataset(dataset.name), dataset.name)
    if "config_id" not in values:
        values.setdefault("dataset_format", "auto")
    options = {name: values.pop(name) for name in get_type_hints(SftOptions) if name in values}
    return UnsentJob("sft", values, options, revision)


def _translate_training_only(values: dict[str, Any]) -> None:
    """Translate the fields that the SFT API expresses in another way."""
    given = {name: values.pop(name) for name in _TRAINING_ONLY if values.get(name) is not None}
    for name in _TRAINING_ONLY:
        values.pop(name, None)
    if given.get("training_type", "sft") != "sft":
        raise UsageProblem(f"training_type must be 'sft', got {given['training_type']!r}")
    if "logging_backend" in given:
        values.setdefault("tracking_backend", given["logging_backend"])
    if "lora_version" in given:
        if values.get("adapter_name") is None:
            raise UsageProblem("lora_version needs lora_name (--name): the adapter to start from")
        if values.get("adapter_path") is not None:
            raise UsageProblem("lora_version and adapter_path both name an adapter to start from; give one")
        if isinstance(given["lora_version"], bool) or not isinstance(given["lora_version"], int | str):
            raise UsageProblem(f"lora_version must be a version or an alias, got {given['lora_version']!r:.80}")
        values["adapter_path"] = f"models:/{values['adapter_name']}/{given['lora_version']}"
    if "save_name" in given:
        values["adapter_name"] = given["save_name"]


def _check_config_id(values: dict[str, Any]) -> None:
    """Leave out an id that is null, as the service does."""
    given = values.pop("config_id", None)
    if given is None:
        return
    if not isinstance(given, str):
        raise UsageProblem(f"config_id must be the id or the name of a saved configuration, as text, got {given!r:.80}")
    values["config_id"] = given


def _require(submission: UnsentJob) -> None:
    is_sft = submission.interface == "sft"
    wanted = {
        "base_model" if is_sft else "model_name": "a base model (--model)",
        "dataset_name" if is_sft else "dataset_version": "a dataset (--dataset)",
    }
    missing = [words for name, words in wanted.items() if submission.fields.get(name) in (None, "")]
    if missing:
        raise UsageProblem(f"name {' and '.join(missing)}, in a --file, or by a saved --config")
