"""Finds the files of a job's adapter and merged model: on this machine, in the registry, or in the store."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx

from jobs.errors import AdapterNotFound, AdapterNotReady
from jobs.folders import job_folder
from jobs.mlflow_server import MlflowServer, explain_refusal
from jobs.network.deadlines import call_deadline
from jobs.network.failures import describe_failure
from jobs.results import object_store
from jobs.results.archive import Archive, Download, checksum
from jobs.results.archive_members import Member, MlflowFile
from jobs.results.object_store import StoredObject
from jobs.service.job import Job
from jobs.settings import Settings
from jobs.shared_store import MERGED, SharedStore, owner_of
from jobs.status import JobStatus
from sft.errors import InvalidConfig, StackError
from sft.files.places import follow

Part = Literal["adapter", "merged"]  # of a job's result
REPLACING_SECONDS = 0.05
TRIES = 10  # for an adapter that is being replaced


def prepare_download(settings: Settings, job: Job, part: Part = "adapter") -> Download:
    """Find a part of a completed job's result and hash its archive. Raises as `find_adapter` and `checksum`."""
    find = find_adapter if part == "adapter" else find_merged
    for _ in range(TRIES - 1):
        archive = find(settings, job)
        try:
            return Download(archive, checksum(archive))
        except AdapterNotReady:  # replaced since it was listed
            continue
    archive = find(settings, job)
    return Download(archive, checksum(archive))


def find_adapter(settings: Settings, job: Job) -> Archive:
    """Find a completed job's adapter: in its folder if this machine has it, else in the registry.

    Raises:
        AdapterNotReady: the job has not completed.
        AdapterNotFound: the files are in neither.
        StackError: the registry can't be reached.
    """
    result, name = _read_result(job)
    members = list_own_files(settings, job, job.output_path)
    if not members:
        server = MlflowServer.find(settings)
        members = list_registered_files(server, result["model_name"], result["model_version"])
    return Archive(name, _sorted(members))


def find_merged(settings: Settings, job: Job) -> Archive:
    """Find a completed job's merged model: in its folder if this machine has it, else in the store.

    Raises:
        AdapterNotReady: the job has not completed.
        AdapterNotFound: it has no merged model, or the files are in neither.
        StackError: the store can't be reached.
        StoreRefused: it can't be used as it is.
    """
    result, name = _read_result(job)
    if reason := result.get("merge_error"):
        raise AdapterNotFound(f"Job {job.id} has an adapter and no merged model: {reason}")
    if not result.get("merged_path"):
        raise AdapterNotFound(f"Job {job.id} has no merged model; submit it with save_merged_model to get one")
    members = list_own_files(settings, job, result["merged_path"])
    store = SharedStore.find(settings)
    if not members and store is not None and (kept := store.get(owner_of(job.id), MERGED)):
        places = {file: store.locate(owner_of(job.id), digest) for file, (digest, _) in kept.files.items()}
        members = [Member(file, kept.files[file][1], remote=StoredObject(place)) for file, place in places.items()]
    if not members:
        where = f" nor in the store {store.url}" if store else "; set TUNEYARD_STORE so that they outlive their machine"
        raise AdapterNotFound(f"the merged model's files of job {job.id} are not on this machine{where}")
    return Archive(f"{name}-merged", _sorted(members))


def _read_result(job: Job) -> tuple[dict[str, Any], str]:
    """A completed job's result, and its adapter's name."""
    if job.status is not JobStatus.COMPLETED:
        if not job.status.is_terminal:
            raise AdapterNotReady(f"Job {job.id} is {job.status}; its adapter can be downloaded once it has completed")
        how = "failed" if job.status is JobStatus.FAILED else "was cancelled"
        raise AdapterNotReady(f"Job {job.id} {how}, so it has no adapter. Only completed jobs have one")
    result = job.result or {}
    if not result.get("model_name") or not result.get("model_version"):
        raise AdapterNotFound(f"Job {job.id} has not reported which adapter it registered")
    return result, f"{result['model_name']}-{result['model_version']}"


def _sorted(members: list[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.name))


def list_own_files(settings: Settings, job: Job, path: str | None) -> list[Member]:
    """List the files of the adapter or the merged model in the job's folder; none if this machine does not have it.

    Raises:
        AdapterNotFound: a link among them leads out of the job's folder.
        AdapterNotReady: the folder is being replaced.
    """
    if job.spec is None or path is None:
        return []
    try:
        own = job_folder(settings, job.spec.config, job.id).resolve()
    except InvalidConfig:  # the folder is allowed where the job ran, but not here
        return []
    folder = follow(path, own)
    if folder is None:
        return []
    for _ in range(TRIES):
        if not folder.is_dir():
            if not any(folder.parent.glob(f".{folder.name}-*")) and not folder.is_dir():
                return []
            time.sleep(REPLACING_SECONDS)  # between removing the old one and renaming the new one
            continue
        try:
            looked_at = folder.stat().st_ino
            members = _list_files(folder, own)
            if folder.stat().st_ino == looked_at:
                return members
        except FileNotFoundError:  # replaced meanwhile
            continue
    if not folder.is_dir():  # only leftovers of an interrupted replacement
        return []
    raise AdapterNotReady(f"the adapter of job {job.id} is being replaced; try again")


def _list_files(folder: Path, own: Path) -> list[Member]:
    members = []
    for path in folder.rglob("*"):
        target = follow(str(path), own)
        if target is None:
            raise AdapterNotFound(f"{path} leads out of the job's folder {own}; remove that link")
        if target.is_file():
            found = target.stat()
            name = path.relative_to(folder).as_posix()
            members.append(Member(name, found.st_size, target, found.st_mtime_ns, root=own))
    return members


def list_registered_files(server: MlflowServer, name: str, version: str) -> list[Member]:
    """List the files of a registered version, through MLflow's artifact proxy.

    Raises:
        AdapterNotFound: the registry has no such version, or stores its files out of its proxy's reach.
        StackError: MLflow can't be reached.
    """
    if not server.has_api:
        raise AdapterNotFound(
            f"the adapter's files are not on this machine, and MLflow at {server.url} has no HTTP API"
        )
    try:
        with server.open() as client, server.watch(), call_deadline():
            response = client.get("mlflow/model-versions/get", params={"name": name, "version": version})
            if response.status_code == httpx.codes.NOT_FOUND:
                raise AdapterNotFound(f"models:/{name}/{version} is not in the registry at {server.url} any more")
            found = response.raise_for_status().json()["model_version"]
            source = urlsplit(found["source"])
            if source.scheme == "mlflow-artifacts":
                members = list(_list_artifacts(server, client, source.path.strip("/"), ""))
            elif source.scheme in object_store.SCHEMES and _is_of_its_run(client, found):
                members = _list_stored(found["source"])
            else:
                raise AdapterNotFound(f"models:/{name}/{version} is stored at {found['source']}; fetch it from there")
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise StackError(f"MLflow at {server.url} {explain_refusal(status) or f'responds with {status}'}") from error
    except httpx.HTTPError as error:
        raise StackError(f"MLflow at {server.url} can't be reached ({describe_failure(error)})") from error
    if not members:
        raise AdapterNotFound(f"models:/{name}/{version} has no files in the registry at {server.url}")
    return members


def _is_of_its_run(client: httpx.Client, version: dict[str, Any]) -> bool:
    """Whether a version's files are below the location that MLflow assigned to its run: it accepts any URL."""
    response = client.get("mlflow/runs/get", params={"run_id": version.get("run_id", "")})
    if response.status_code == httpx.codes.NOT_FOUND:
        return False
    own = response.raise_for_status().json()["run"]["info"]["artifact_uri"]
    return version["source"].startswith(f"{own}/") and ".." not in version["source"].split("/")


def _list_stored(folder: str) -> list[Member]:
    files = object_store.list_files(folder)
    if outside := next((name for name in files if ".." in name.split("/")), None):
        raise AdapterNotFound(f"the store lists a file outside the adapter's folder: {outside}")
    return [Member(name, size, remote=file) for name, (file, size) in files.items()]


def _list_artifacts(server: MlflowServer, client: httpx.Client, root: str, below: str) -> Iterator[Member]:
    """List files of an artifact folder recursively; MLflow returns paths relative to the requested folder."""
    response = client.get("mlflow-artifacts/artifacts", params={"path": f"{root}/{below}".rstrip("/")})
    files: list[dict[str, Any]] = response.raise_for_status().json().get("files", [])
    for file in files:
        name = f"{below}/{file['path']}".lstrip("/")
        if ".." in name.split("/"):
            raise AdapterNotFound(f"the registry lists a file outside the adapter's folder: {name}")
        if file["is_dir"]:
            yield from _list_artifacts(server, client, root, name)
        else:
            place = f"mlflow-artifacts/artifacts/{quote(f'{root}/{name}')}"
            yield Member(name, int(file.get("file_size", 0)), remote=MlflowFile(server, place))
