"""Files of adapters that MLflow keeps in an object store, which MLflow's clients reach by themselves."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from jobs.network.deadlines import READ_SECONDS, within
from sft.errors import StackError

SCHEMES = ("s3",)  # of those that MLflow knows; what each needs is the extra of that name
CHUNK_BYTES = 1 << 20
TRIES = 2  # of each request to a store
CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class StoredFile:
    """An object of a store."""

    url: str

    def read(self, seconds: float) -> Iterator[bytes]:
        """Yield the content; waiting for it may take `seconds` in total. Raises StackError."""
        with _translate_errors(self.url):
            store, path = _open_store(self.url)
            with store.open(path, "rb", block_size=CHUNK_BYTES, cache_type="readahead") as file:
                yield from within(iter(partial(file.read, CHUNK_BYTES), b""), seconds, "the store")


def list_files(folder: str) -> dict[str, tuple[StoredFile, int]]:
    """The objects below a URL by their names there, each with its size in bytes. Raises StackError."""
    with _translate_errors(folder):
        store, root = _open_store(folder)
        found: dict[str, dict[str, Any]] = store.find(root, detail=True)
    scheme = urlsplit(folder).scheme
    return {
        path.removeprefix(f"{root}/"): (StoredFile(f"{scheme}://{path}"), int(entry["size"]))
        for path, entry in found.items()
        if path.startswith(f"{root}/")
    }


def _open_store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL's path in it. Credentials are found as the store's own tools find them."""
    import fsspec

    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")  # as MLflow's clients; None has them find it
    options = {
        "client_kwargs": {"endpoint_url": endpoint} if endpoint else {},
        "config_kwargs": {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": TRIES},
        },
        "use_listings_cache": False,
    }
    store, path = fsspec.core.url_to_fs(url.rstrip("/"), **options)
    return store, str(path)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Raise what goes wrong with a store as StackError; its libraries have errors of many kinds."""
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
        words = next(iter(str(error).splitlines()), "")[:200]
        raise StackError(f"the adapter at {url} can't be read ({type(error).__name__}: {words})") from error
