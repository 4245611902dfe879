"""The process that checks a file that a user adds and publishes it, so that the API reads no rows.

`python -m tasks.add_data` reads a request from stdin and writes the response to stdout, each as JSON: `{"file": ...,
"settings": ...}` (`jobs.service.data_adder.NewFile`), and `{"version": ..., "commit": ..., "is_new": ...}` or
`{"error": {"code": ..., "detail": ...}}`. Killed at any point it leaves the registry as it was, or with the version.
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from jobs.errors import InvalidUpload
from jobs.keeper import end_with_parent
from jobs.own_data.registry import OwnRegistry, Published
from jobs.own_data.staging import noticing_full_disk
from jobs.own_data.version import DataVersion
from jobs.preflight.known_names import refuse_known_name
from jobs.privacy import keep_private
from jobs.sanitizing.log_lines import keep_lines_whole
from jobs.scratch import use_scratch
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from sft.confinement import Limits, confined
from sft.data.file_report import FileReport, inspect_file
from sft.errors import DatasetNotFound, TuneyardError
from sft.files.temporary_folders import temporary_folder
from tasks.causes import explain
from tasks.dataset_registry import ensure_registry
from tasks.limits import find_limits, find_note
from tasks.own_dataset import RECORD, owner_in_store

PIECE_BYTES = 1 << 20
CPU_SECONDS, CPU_SECONDS_A_MEGABYTE = 30.0, 200.0  # of a check; a compressed megabyte may be 250 of rows


def add(file: dict[str, Any], settings: Settings) -> Published:
    """Check a file and publish it. Raises as `jobs.service.data_adder.DataAdder.add` does."""
    path, owner = Path(file["path"]), file["owner"] and UUID(file["owner"])
    update_registry(file["name"], settings)
    refuse_known_name(file["name"], settings)
    with noticing_full_disk(path.parent), ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(hash_twice, path)
        report = check(path, settings)
        md5, sha256 = hashing.result()
    if file["sha256"] not in (None, sha256):
        raise InvalidUpload(f"file has the SHA-256 {sha256}, not {file['sha256']}; send it again")
    wanted = _describe(file, report, path, md5, sha256, owner)
    registry = OwnRegistry(settings.home)
    store = SharedStore.find(settings)
    if store is not None:  # before others wait for the registry
        store.put_file(owner_in_store(wanted.name), path, sha256)

    def may_add(before: DataVersion) -> bool:
        return bool(file["may_extend_all"]) or before.owner == owner

    def send(version: DataVersion) -> None:
        if store is not None:
            _send_record(store, version, path if path.exists() else registry.locate(version))

    return registry.publish(path, wanted, may_add, send)


def check(path: Path, settings: Settings) -> FileReport:
    """Read the file within the limits for input. Raises InvalidDataset or ResourceLimit, or ends the process."""
    with confined(find_check_limits(settings, path.stat().st_size), find_note(), f"file {path.name}: to read it"):
        return inspect_file(path)


def find_check_limits(settings: Settings, size: int) -> Limits:
    """The limits for a file of so many bytes: a few of them can claim millions of rows, which others would wait for."""
    limits = find_limits(settings)
    seconds = float(round(CPU_SECONDS + CPU_SECONDS_A_MEGABYTE * size / 2**20))
    return replace(limits, total_seconds=min(seconds, limits.total_seconds or seconds))


def update_registry(name: str, settings: Settings) -> None:
    """Bring the mirror of a remote registry up to date, before it is asked for a name."""
    try:
        if settings.dataset_registry is not None and "://" in settings.dataset_registry:
            ensure_registry(settings)
    except DatasetNotFound as error:
        sys.stderr.write(f"The dataset registry is not checked for the name {name}: {error}\n")


def hash_twice(path: Path) -> tuple[str, str]:
    """MD5 (DVC's identifier) and SHA-256 of a file, read once."""
    digests = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as content:
        while piece := content.read(PIECE_BYTES):
            for digest in digests:
                digest.update(piece)
    return digests[0].hexdigest(), digests[1].hexdigest()


def _describe(
    file: dict[str, Any], report: FileReport, path: Path, md5: str, sha256: str, owner: UUID | None
) -> DataVersion:
    name = file["name"]
    return DataVersion(
        name=name,
        number=0,
        commit="",
        suffix=path.name.removeprefix(name),
        filename=file["filename"],
        size=path.stat().st_size,
        md5=md5,
        sha256=sha256,
        created_at=datetime.now(UTC),
        rows=report.rows,
        bad=report.bad,
        duplicates=report.duplicates,
        format=report.format,
        columns=report.columns,
        bad_rows=report.bad_rows,
        reasons=report.reasons,
        owner=owner,
    )


def _send_record(store: SharedStore, version: DataVersion, path: Path) -> None:
    """Complete the version in the store, by its number and by its commit, for jobs on other machines."""
    record = json.dumps({"version": json.loads(version.to_json()), "commit": version.commit}).encode()
    owner, digest = owner_in_store(version.name), hashlib.sha256(record).hexdigest()
    store.put_file(owner, path, version.sha256)
    with temporary_folder("tuneyard-record-") as folder:
        (folder / RECORD).write_bytes(record)
        store.put_file(owner, folder / RECORD, digest)
    files = {version.file: (version.sha256, version.size), RECORD: (digest, len(record))}
    for item in (version.version, version.commit):
        store.write_list(owner, item, files)


def answer(text: str) -> dict[str, Any]:
    """Respond to a request."""
    request = json.loads(text)
    try:
        published = add(request["file"], Settings.model_validate(request["settings"]))
    except Exception as error:
        cause = explain(error)
        if cause.code == TuneyardError.code and not isinstance(error, TuneyardError):
            raise
        return {"error": {"code": cause.code, "detail": cause.message.replace("dataset_name: ", "file: ")}}
    version = published.version
    return {"version": json.loads(version.to_json()), "commit": version.commit, "is_new": published.is_new}


def main() -> None:
    """Answer one request."""
    end_with_parent()
    keep_private()
    keep_lines_whole()
    use_scratch()
    sys.stdout.write(json.dumps(answer(sys.stdin.read())))
    sys.stdout.flush()
    os._exit(0)  # libraries' threads have nothing left to do


if __name__ == "__main__":
    main()
