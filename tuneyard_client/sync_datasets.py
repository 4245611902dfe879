# Generated from async_datasets.py by client/generate_sync.py; do not edit.
"""`client.datasets` for the blocking client: datasets that were added to the service."""

import builtins
from pathlib import Path
from typing import Any

import httpx

from tuneyard_client import datasets
from tuneyard_client.calls import Run
from tuneyard_client.retries import unreachable
from tuneyard_wire.own_data import AddedDataset, Dataset, DatasetVersion, ShownRows


class Datasets:
    """Datasets that were added to the service. A text names one as `NAME`, or a version of it as `NAME@VERSION`."""

    def __init__(self, run: Run, follow: Any, stream: Any, http: httpx.Client) -> None:
        self._run, self._follow, self._stream, self._http = run, follow, stream, http

    def add(self, file: str | Path, name: str | None = None) -> AddedDataset:
        """Add a file as a version of a dataset, which is called after the file unless `name` is given.

        It is checked: see the result's `format`, `rows`, `bad_rows` and `duplicates`. The same content under the same
        name is the version that it was before. A large file is sent in parts, each again after a lost connection.
        """
        added: AddedDataset = self._follow(datasets.add_all(Path(file), name))
        return added

    def list(self) -> builtins.list[DatasetVersion]:
        """The newest version of each dataset, the one added last first."""
        found: builtins.list[DatasetVersion] = self._follow(datasets.list_all())
        return found

    def get(self, dataset: str) -> Dataset:
        """A dataset with all its versions, or with the one that is named."""
        return self._run(datasets.get(dataset))

    def rows(self, dataset: str, limit: int = 3, model: str | None = None, template: str | None = None) -> ShownRows:
        """The first rows, and with `model` as the chat template writes them for it."""
        return self._run(datasets.rows(dataset, limit, model, template))

    def download(self, dataset: str, file: str | Path) -> Path:
        """Download a version's file, which must not exist; returns it.

        Raises:
            NotFound: there is no such dataset.
            ChecksumMismatch: the download is damaged.
        """
        datasets.check_absent(Path(file))
        try:
            with self._stream(datasets.content(dataset)) as response:
                with datasets.FileDownload(Path(file), response.headers) as download:
                    for chunk in response.iter_bytes():
                        download.write(chunk)
                    return download.finish()
        except httpx.TransportError as error:
            raise unreachable(error, self._http.base_url) from error

    def delete(self, dataset: str) -> builtins.list[str]:
        """Delete a version, or of a name alone all versions; returns what was deleted.

        Raises:
            Conflict: a job that has not ended needs one.
        """
        return (self._run(datasets.delete(dataset))).deleted
