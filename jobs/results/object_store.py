"""Files of adapters that MLflow keeps in an object store, which its clients access directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from jobs.network.deadlines import within
from jobs.network.failures import describe_failure
from jobs.network.object_storage import open_storage
from sft.errors import StackError

SCHEMES = ("s3",)  # of those that MLflow knows; what each needs is the extra of that name
MLFLOW_ENDPOINT = "MLFLOW_S3_ENDPOINT_URL"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredObject:
    """An object of a store; MLflow's may have another S3 endpoint than the one of S3's own tools."""

    url: str
    endpoint_variable: str | None = None

    def read(self, seconds: float) -> Iterator[bytes]:
        """Yield the content; waiting for it may take `seconds` in total. Raises StackError."""
        with _translate_errors(self.url):
            store, path = open_storage(self.url, self.endpoint_variable)
            with store.open(path, "rb", block_size=CHUNK_BYTES, cache_type="readahead") as file:
                yield from within(iter(partial(file.read, CHUNK_BYTES), b""), seconds, "the store")


def list_files(folder: str) -> dict[str, tuple[StoredObject, int]]:
    """The objects below a URL by their relative names, each with its size in bytes. Raises StackError."""
    with _translate_errors(folder):
        store, root = open_storage(folder, MLFLOW_ENDPOINT)
        found: dict[str, dict[str, Any]] = store.find(root, detail=True)
    scheme = urlsplit(folder).scheme
    return {
        path.removeprefix(f"{root}/"): (StoredObject(f"{scheme}://{path}", MLFLOW_ENDPOINT), int(entry["size"]))
        for path, entry in found.items()
        if path.startswith(f"{root}/")
    }


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Raise a store's errors as StackError; its libraries have errors of many kinds."""
    scheme = urlsplit(url).scheme
    try:
        yield
    except ImportError as error:
        raise StackError(
            f"the adapter is stored at {url}, and {scheme} can't be read here ({error}); "
            f"pip install 'tuneyard[{scheme}]' where the API runs"
        ) from error
    except StackError:
        raise
    except Exception as error:
        words = next(iter(str(error).splitlines()), "")[:200] or describe_failure(error)
        raise StackError(f"the adapter at {url} can't be read ({words})") from error
