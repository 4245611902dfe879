"""The datasets of a job that has several, or others to evaluate on: their versions, and their rows as one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import md5
from pathlib import Path
from typing import ClassVar

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.data.mixing import AnyRows, MixedData, MixedPart
from sft.data.tokenization import PreparedData
from sft.errors import InvalidConfig, TuneyardError
from sft.sources import find_alias, label_datasets
from tasks.dataset import resolve
from tasks.dataset_store import count_rows
from tasks.dataset_version import DatasetVersion


@dataclass(frozen=True)
class DatasetMix:
    """Exact versions of a job's datasets. `sources` to train on, with their `weights`; `validation` to evaluate on.

    What is recorded of one `DatasetVersion` is recorded of the mix in the same words.
    """

    sources: tuple[DatasetVersion, ...]
    weights: tuple[float, ...]
    validation: tuple[DatasetVersion, ...] = ()
    revision: ClassVar[None] = None
    commit: ClassVar[None] = None
    source: ClassVar[str] = "mix"

    @property
    def versions(self) -> tuple[DatasetVersion, ...]:
        """All of them, in their order."""
        return self.sources + self.validation

    @property
    def name(self) -> str:
        """The datasets' names, to train on."""
        return ", ".join(version.name for version in self.sources)

    @property
    def reference(self) -> str:
        """The datasets to train on with revisions, and weights other than 1: `handbook@v1.0, 0.5 x chat@v2`."""
        named = ((weight, _shorten(str(one.reference))) for weight, one in zip(self.weights, self.sources, strict=True))
        return ", ".join(name if weight == 1 else f"{weight:g} x {name}" for weight, name in named)

    @property
    def md5(self) -> str:
        """Digest of all versions and weights."""
        made_of = [[one.md5 for one in self.sources], self.weights, [one.md5 for one in self.validation]]
        return md5(json.dumps(made_of).encode(), usedforsecurity=False).hexdigest() + ".mix"

    @property
    def rows(self) -> int:
        """In the training files."""
        return sum(version.rows for version in self.sources)

    def lineage(self) -> dict[str, str]:
        """What the registry records: of the mix, and in `dataset_versions` of each dataset."""
        each = [
            {
                "name": one.name,
                "revision": one.revision,
                "commit": one.commit,
                "md5": one.md5,
                "source": one.source,
                "weight": weight,
            }
            for one, weight in zip(self.versions, [*self.weights, *[None] * len(self.validation)], strict=True)
        ]
        return {
            "dataset": self.name,
            "dataset_revision": "",
            "dataset_commit": "",
            "dataset_md5": self.md5,
            "dataset_source": self.source,
            "dataset_versions": json.dumps(each),
        }


AnyDataset = DatasetVersion | DatasetMix
Prepare = Callable[[SFTConfig, DatasetVersion], PreparedData]


def resolve_all(config: SFTConfig, settings: Settings) -> AnyDataset:
    """`resolve` every dataset of a configuration; errors of one of several name its place in the list.

    Raises:
        InvalidConfig: two names mean the same content, or a dataset to evaluate on is the very file that is trained on.
    """
    if not config.is_mixed:
        return resolve(str(config.dataset_name), settings, config.dataset_split)
    found = {field: _resolve_at(field, name, config, settings) for field, name in config.name_datasets()}
    names = dict(config.name_datasets())
    if alias := find_alias((field, names[field], one.md5) for field, one in found.items()):
        raise InvalidConfig(alias)
    sources = tuple(version for field, version in found.items() if field.startswith("dataset_name"))
    validation = tuple(version for field, version in found.items() if field.startswith("validation_dataset"))
    for field, version in found.items():
        if field.startswith("validation_dataset") and version.train_file in {source.train_file for source in sources}:
            raise InvalidConfig(
                f"{field}: {version.name!r} is trained on and has no held-out file; name other data to evaluate on, or "
                "leave it out and set validation_split"
            )
    if validation:
        sources = tuple(_without_held_out(version) for version in sources)
    return DatasetMix(sources, tuple(source.weight for source in config.sources), validation)


def _resolve_at(field: str, name: str, config: SFTConfig, settings: Settings) -> DatasetVersion:
    is_validation = field.startswith("validation_dataset")
    try:
        version = resolve(name, settings, "train" if is_validation else config.dataset_split)
    except TuneyardError as error:
        message = str(error).removeprefix("dataset_name ")
        raise type(error)(f"{field}: {message}") from error
    return _held_out_alone(version) if is_validation else version


def _held_out_alone(version: DatasetVersion) -> DatasetVersion:
    """A dataset to evaluate on: its held-out file if it has one, else its only file."""
    if version.eval_file is None:
        return version
    file = version.eval_file
    return replace(version, train_file=file, eval_file=None, rows=count_rows(file), unused=())


def _without_held_out(version: DatasetVersion) -> DatasetVersion:
    """A dataset to train on when another one is evaluated on: its held-out file is not used."""
    if version.eval_file is None:
        return version
    return replace(version, eval_file=None, unused=(version.eval_file.name, *version.unused))


def list_versions(config: SFTConfig, dataset: AnyDataset) -> Iterator[tuple[SFTConfig, DatasetVersion]]:
    """Each dataset with the configuration to tokenize it by."""
    if isinstance(dataset, DatasetVersion):
        yield config, dataset
        return
    for version in dataset.sources:
        yield config, version
    for version in dataset.validation:
        yield config.model_copy(update={"validation_split": 0.0}), version


def prepare_all(config: SFTConfig, dataset: AnyDataset, prepare: Prepare, is_plan: bool = False) -> AnyRows:
    """Tokenize each dataset by `prepare`, and mix their rows if there are several."""
    rows = []
    for own_config, version in list_versions(config, dataset):
        found = prepare(own_config, version)
        found.advice += version.advise(config.dataset_split)
        rows.append(found)
    if isinstance(dataset, DatasetVersion):
        return rows[0]
    names = [[_shorten(str(one.reference)) for one in versions] for versions in (dataset.sources, dataset.validation)]
    labels = [*label_datasets(names[0]), *label_datasets(names[1])]
    weights = [*dataset.weights, *[None] * len(dataset.validation)]
    parts = map(MixedPart, [*names[0], *names[1]], labels, weights, rows)
    return MixedData([*parts], config.seed, config.max_samples, is_plan)


def _shorten(name: str) -> str:
    """A file's name without its folders if its path is absolute."""
    return Path(name).name if name.startswith("/") else name
