"""A job's adapter as one tar archive, the same bytes for the same files: its checksum is known before it is sent."""

import functools
import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from jobs.folders import job_folder
from jobs.job import Job
from jobs.settings import Settings
from jobs.status import JobStatus
from sft.errors import AdapterNotFound, AdapterNotReady, InvalidConfig, StackError
from sft.places import follow

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Member:
    """A file to archive: on this machine, or at a URL."""

    name: str
    size: int
    path: Path | None = None
    changed_ns: int = 0
    url: str = ""

    def read(self) -> Iterator[bytes]:
        """The content. Raises AdapterNotReady when it is not as long as it was."""
        left = self.size
        for chunk in self._read_file() if self.path else self._download():
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if left != 0:
            raise AdapterNotReady(f"{self.name} changed while it was read; ask again")

    def _read_file(self) -> Iterator[bytes]:
        assert self.path is not None  # noqa: S101 - narrows
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def _download(self) -> Iterator[bytes]:
        with httpx.stream("GET", self.url, timeout=TIMEOUT_SECONDS, trust_env=False) as answer:
            answer.raise_for_status()
            yield from answer.iter_bytes(CHUNK_BYTES)


@dataclass(frozen=True)
class Archive:
    """An uncompressed tar archive, without owners and times so that it is reproducible; `name` is for its file."""

    name: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Its length in bytes."""
        content = sum(len(self._header(member)) + _padded(member.size, tarfile.BLOCKSIZE) for member in self.members)
        return _padded(content + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    def read(self) -> Iterator[bytes]:
        """Its bytes, a chunk at a time; nothing is held in memory."""
        sent = 0
        for member in self.members:
            header = self._header(member)
            yield header
            yield from member.read()
            padding = _padded(member.size, tarfile.BLOCKSIZE) - member.size
            yield bytes(padding)
            sent += len(header) + member.size + padding
        yield bytes(self.size - sent)

    @staticmethod
    def _header(member: Member) -> bytes:
        info = tarfile.TarInfo(member.name)
        info.size, info.mode = member.size, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)


@functools.lru_cache(maxsize=64)
def checksum(archive: Archive) -> str:
    """SHA-256 in hex, from reading every file once; remembered until a file changes.

    Raises:
        AdapterNotReady: a file changed meanwhile.
        StackError: a file can't be fetched.
    """
    digest = hashlib.sha256()
    try:
        for chunk in archive.read():
            digest.update(chunk)
    except (OSError, httpx.HTTPError) as error:
        raise StackError(f"the adapter can't be read: {type(error).__name__}: {error}") from error
    return digest.hexdigest()


def find_adapter(settings: Settings, job: Job) -> Archive:
    """What a completed job made: from its folder if this machine has it, else from the registry.

    Raises:
        AdapterNotReady: the job has not completed.
        AdapterNotFound: the files are in neither place.
        StackError: the registry can't be reached.
    """
    if job.status is not JobStatus.COMPLETED:
        remedy = "it has none" if job.status.is_terminal else "ask again once it has completed"
        raise AdapterNotReady(f"Job {job.id} is {job.status}, the adapter of a completed job can be fetched; {remedy}")
    result = job.result or {}
    if not result.get("model_name") or not result.get("model_version"):
        raise AdapterNotFound(f"Job {job.id} has not reported which adapter it registered")
    name = f"{result['model_name']}-{result['model_version']}"
    members = list_own_files(settings, job)
    if not members:
        members = list_registered_files(settings.mlflow_tracking_uri, result["model_name"], result["model_version"])
    return Archive(name, tuple(sorted(members, key=lambda member: member.name)))


def list_own_files(settings: Settings, job: Job) -> list[Member]:
    """The adapter's files in the job's own folder, none where this machine does not have it.

    Raises:
        AdapterNotFound: a link among them leads out of the job's folder.
    """
    if job.spec is None or job.output_path is None:
        return []
    try:
        own = job_folder(settings, job.spec.config, job.id).resolve()
    except InvalidConfig:  # allowed where the job ran, not here
        return []
    folder = follow(job.output_path, own)
    if folder is None or not folder.is_dir():
        return []
    members = []
    for path in folder.rglob("*"):
        target = path.resolve()
        if not target.is_relative_to(own):
            raise AdapterNotFound(f"{path} leads out of the job's folder {own}; remove that link")
        if target.is_file():
            found = target.stat()
            name = path.relative_to(folder).as_posix()
            members.append(Member(name, found.st_size, target, found.st_mtime_ns))
    return members


def list_registered_files(tracking_uri: str | None, name: str, version: str) -> list[Member]:
    """The files of a registered version, behind MLflow's artifact proxy.

    Raises:
        AdapterNotFound: the registry has no such version, or keeps its files where its proxy does not reach.
        StackError: MLflow can't be reached.
    """
    base = f"{tracking_uri}".rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise AdapterNotFound(f"the adapter's files are not on this machine, and MLflow at {base} has no HTTP API")
    try:
        with httpx.Client(base_url=f"{base}/api/2.0/", timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            answer = client.get("mlflow/model-versions/get", params={"name": name, "version": version})
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise AdapterNotFound(f"models:/{name}/{version} is not in the registry at {base} any more")
            source = urlsplit(answer.raise_for_status().json()["model_version"]["source"])
            if source.scheme != "mlflow-artifacts":
                raise AdapterNotFound(f"models:/{name}/{version} is stored at {source.geturl()}; fetch it from there")
            members = list(_list_artifacts(client, source.path.strip("/"), ""))
    except httpx.HTTPError as error:
        raise StackError(f"MLflow at {base} can't be reached ({type(error).__name__})") from error
    if not members:
        raise AdapterNotFound(f"models:/{name}/{version} has no files in the registry at {base}")
    return members


def _list_artifacts(client: httpx.Client, root: str, below: str) -> Iterator[Member]:
    """Files of an artifact folder and those below it; MLflow gives paths relative to the folder asked for."""
    answer = client.get("mlflow-artifacts/artifacts", params={"path": f"{root}/{below}".rstrip("/")})
    files: list[dict[str, Any]] = answer.raise_for_status().json().get("files", [])
    for file in files:
        name = f"{below}/{file['path']}".lstrip("/")
        if ".." in name.split("/"):
            raise AdapterNotFound(f"the registry lists a file outside the adapter's folder: {name}")
        if file["is_dir"]:
            yield from _list_artifacts(client, root, name)
        else:
            url = client.base_url.join(f"mlflow-artifacts/artifacts/{quote(f'{root}/{name}')}")
            yield Member(name, int(file.get("file_size", 0)), url=str(url))


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block
