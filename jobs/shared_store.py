"""`SharedStore`: stores folders that must outlive a machine, in an object store or a shared folder.

A folder is stored as its files, each under the SHA-256 of its content and so sent once per owner, and a manifest that
lists them. The manifest is written last, and only by a process that may publish; so a folder is complete or absent, and
a process that has lost its job can't change the job's folders.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from jobs.errors import StoreRefused
from jobs.network.failures import describe_failure
from jobs.network.object_storage import is_misconfigured, open_storage
from jobs.settings import Settings
from jobs.store_lists import Damaged, Files, Kept, read_list, render_list
from sft.errors import StackError, TuneyardError
from sft.files.disk import is_about_space
from sft.files.publication import Publishing

CHECKPOINTS = "checkpoints"
MERGED = "merged"
_SUFFIX = ".json"
_FILES = "files"
_FULL = ("StorageFull", "InsufficientStorage", "QuotaExceeded")  # codes of servers that speak S3
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")
_DETAIL = 200  # characters of a store's own message


class SharedStore:
    """The store of `TUNEYARD_STORE`. An item is a folder called `name` of an owner, such as `jobs/<id>`.

    All methods raise StackError while the store can't be reached, and StoreRefused if it can't be used as it is.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @classmethod
    def find(cls, settings: Settings) -> "SharedStore | None":
        """The store of these settings; None if there is none."""
        return cls(settings.store) if settings.store else None

    def check(self) -> None:
        """Write, list and delete something small."""
        with self._storage() as (storage, root):
            place = f"{root}/.check-{uuid4().hex}"
            with self._expecting_bucket():
                storage.pipe_file(place, b"")
                storage.find(place)
                storage.rm_file(place)

    def put(
        self,
        owner: str,
        name: str,
        folder: Path,
        publishing: Publishing = nullcontext,
        digests: Mapping[str, str] | None = None,
    ) -> int:
        """Store a folder's files; returns the number of bytes sent.

        Args:
            publishing: entered around writing the manifest; raises if this process may not publish (any more).
            digests: known SHA-256 of files, by their path in the folder.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        places = [path.relative_to(folder).as_posix() for path in paths]
        known = {place: (digests or {}).get(place) or hash_file(folder / place) for place in places}
        sizes = {place: (folder / place).stat().st_size for place in places}
        sent = self.put_files(owner, folder, known)
        with publishing():
            self.write_list(owner, name, {place: (known[place], sizes[place]) for place in places})
        return sent

    def put_files(self, owner: str, folder: Path, digests: Mapping[str, str]) -> int:
        """Send the files of a folder that the owner lacks; returns the number of bytes sent.

        Args:
            digests: SHA-256 of each, by its path in the folder.
        """
        return sum(self.put_file(owner, folder / place, digest) for place, digest in digests.items())

    def put_file(self, owner: str, path: Path, digest: str) -> int:
        """Send a file with this SHA-256 if the owner lacks it; returns the number of bytes sent.

        Raises Damaged if its content has another digest: a file stored under a digest is never sent again.
        """
        before = path.stat()
        size = before.st_size
        with self._storage() as (storage, root):
            target = f"{root}/{owner}/{_FILES}/{digest}"
            if _size_of(storage, target) == size:
                return 0
            changed = Damaged(f"{path} changed while it was sent to the store {self.url}")
            if hash_file(path) != digest:
                raise changed
            with self._writing(storage, target) as fresh, self._expecting_bucket(path):
                storage.put_file(str(path), fresh)
            after = path.stat()
            if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
                _remove(storage, target)
                raise changed
            return size

    def write_list(self, owner: str, name: str, files: Files) -> None:
        """Complete an item: write the list of its files, which must be in the store."""
        with self._storage() as (storage, root):
            target = f"{root}/{owner}/{name}{_SUFFIX}"
            with self._writing(storage, target) as fresh, self._expecting_bucket():
                storage.pipe_file(fresh, render_list(files))

    def list(self, owner: str, below: str = "") -> dict[str, Kept]:
        """An owner's items by name, only those in the folder `below` if given; none whose list can't be read."""
        found: dict[str, Kept] = {}
        with self._storage() as (storage, root):
            top = f"{root}/{owner}/"
            with self._expecting_bucket():
                paths = storage.find(f"{top}{below}".rstrip("/"))
            for path in paths:
                name = str(path).removeprefix(top)
                if name.startswith(f"{_FILES}/") or not name.endswith(_SUFFIX):
                    continue
                try:
                    kept = self._read(storage, str(path), f"{owner}/{name.removesuffix(_SUFFIX)}")
                except (Damaged, FileNotFoundError):  # being written, or deleted meanwhile
                    continue
                found[name.removesuffix(_SUFFIX)] = kept
        return found

    def get(self, owner: str, name: str) -> Kept | None:
        """One of an owner's items; None if it is absent. Raises Damaged if its manifest can't be read."""
        with self._storage() as (storage, root):
            try:
                return self._read(storage, f"{root}/{owner}/{name}{_SUFFIX}", f"{owner}/{name}")
            except FileNotFoundError:
                return None

    def fetch(self, owner: str, kept: Kept, folder: Path) -> None:
        """Write an item's files into an empty folder. Raises Damaged for a file with other content than was stored."""
        with self._storage() as (storage, root):
            for name, (digest, size) in kept.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    storage.get_file(f"{root}/{owner}/{_FILES}/{digest}", str(target))
                except FileNotFoundError as error:
                    raise Damaged(f"{kept.url} lacks its {name}") from error
                if target.stat().st_size != size or hash_file(target) != digest:
                    raise Damaged(f"{name} of {kept.url} differs from what was stored")

    def locate(self, owner: str, digest: str) -> str:
        """The URL of an owner's file."""
        return f"{self.url}/{owner}/{_FILES}/{digest}"

    def forget(self, owner: str, names: Iterable[str], publishing: Publishing = nullcontext) -> None:
        """Remove items, and the files that no other item of this owner contains."""
        with self._storage() as (storage, root), publishing():
            for name in names:
                _remove(storage, f"{root}/{owner}/{name}{_SUFFIX}")
        used = {digest for kept in self.list(owner).values() for digest, _ in kept.files.values()}
        with self._storage() as (storage, root), publishing():
            for path in storage.find(f"{root}/{owner}/{_FILES}"):
                if PurePosixPath(str(path)).name not in used:
                    _remove(storage, str(path))

    def _read(self, storage: Any, path: str, name: str) -> Kept:
        return read_list(storage.cat_file(path), f"{self.url}/{name}")

    @contextmanager
    def _writing(self, storage: Any, target: str) -> Iterator[str]:
        """Yield the path to write to, so that the file at `target` is complete or absent for others.

        Object stores do so by themselves; in a folder the file is renamed once it is written.
        """
        if not self.url.startswith("file://"):
            yield target
            return
        folder, _, name = target.rpartition("/")
        fresh = f"{folder}/.{name[:_DETAIL]}-{uuid4().hex}"
        try:
            yield fresh
            Path(fresh).replace(target)
        except BaseException:
            with suppress(OSError):
                storage.rm_file(fresh)
            raise

    @contextmanager
    def _expecting_bucket(self, path: Path | None = None) -> Iterator[None]:
        """Raise StoreRefused for a not-found error in the block, unless it is about the file at `path`."""
        try:
            yield
        except FileNotFoundError as error:
            if path is not None and not path.exists():
                raise
            if error.filename and not self.url.startswith("file://"):  # a file of this machine that a variable names
                raise self._blame_settings(error) from error
            raise StoreRefused(f"TUNEYARD_STORE is {self.url}, which does not exist; create it") from error

    @contextmanager
    def _storage(self) -> Iterator[tuple[Any, str]]:
        """The store's file system and the path in it; its errors are raised as StackError or StoreRefused."""
        scheme = urlsplit(self.url).scheme
        try:
            yield open_storage(self.url)
        except ImportError as error:
            raise StoreRefused(
                f"TUNEYARD_STORE is {self.url}, and {scheme} can't be read here ({error}); install its package, for S3 "
                "by pip install 'tuneyard[s3]'"
            ) from error
        except (TuneyardError, Damaged):
            raise
        except ValueError as error:  # such as an endpoint without its scheme
            raise StoreRefused(f"TUNEYARD_STORE is {self.url}, and can't be used ({_show(error)})") from error
        except FileNotFoundError:
            raise
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreRefused(
                f"TUNEYARD_STORE is {self.url}, and there is a file in its place; name a folder"
            ) from error
        except PermissionError as error:
            raise StoreRefused(
                f"TUNEYARD_STORE is {self.url}, and it refuses access ({_show(error)}); give this account the right to "
                "read, write and list there"
            ) from error
        except OSError as error:
            if is_about_space(error) or any(word in str(error) for word in _FULL):
                raise StackError(f"the store {self.url} is full ({_show(error)})") from error
            self._refuse_settings(error)
            raise StackError(f"the store {self.url} can't be reached ({_show(error)})") from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "gcsfs", "azure"):
                raise
            if type(error).__name__ in _NO_CREDENTIALS:
                raise StoreRefused(f"TUNEYARD_STORE is {self.url}, and there are no credentials for it here") from error
            self._refuse_settings(error)
            raise StackError(f"the store {self.url} can't be reached ({_show(error)})") from error

    def _refuse_settings(self, error: Exception) -> None:
        """Raise StoreRefused for an error that is due to the settings on this machine."""
        if is_misconfigured(error):
            raise self._blame_settings(error) from error

    def _blame_settings(self, error: Exception) -> StoreRefused:
        return StoreRefused(
            f"TUNEYARD_STORE is {self.url}, and it can't be used with the settings here ({_show(error)}); correct the "
            "address, the AWS_... variables or the file that they name"
        )


def owner_of(job_id: UUID) -> str:
    """The owner under which a job's items are stored."""
    return f"jobs/{job_id}"


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint among its job's items."""
    return f"{CHECKPOINTS}/checkpoint-{step}"


def list_stored_checkpoints(store: SharedStore, job_id: UUID) -> dict[int, Kept]:
    """A job's checkpoints in the store, each complete, by step in ascending order. Raises as `SharedStore` does."""
    found = {name.rpartition("-")[2]: kept for name, kept in store.list(owner_of(job_id), CHECKPOINTS).items()}
    return {int(step): found[step] for step in sorted(filter(str.isdecimal, found), key=int)}


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(storage: Any, path: str) -> int | None:
    try:
        return int(storage.info(path)["size"])
    except FileNotFoundError:
        return None


def _remove(storage: Any, path: str) -> None:
    try:
        storage.rm_file(path)
    except FileNotFoundError:
        return


def _show(error: BaseException) -> str:
    return " ".join(str(error).split())[:_DETAIL] or describe_failure(error)
