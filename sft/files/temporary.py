"""Makes temporary folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sft.errors import DiskFull


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """An empty folder that is removed after the block. Raises DiskFull if none can be made."""
    try:
        folder = TemporaryDirectory(prefix=prefix)
    except OSError as error:  # full, read-only, or no writable folder
        raise DiskFull(
            f"no temporary folder can be made ({error}); free some space, or set TMPDIR to a folder that has some"
        ) from error
    with folder as made:
        yield Path(made)
