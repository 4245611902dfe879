"""Recognizes a data file's real type by its first bytes, and checks the shape of tables."""

from pathlib import Path

from sft.errors import InvalidDataset
from sft.files.places import is_special

HEAD_BYTES = 512
MOST_COLUMNS = 10_000
SIGNATURES = {  # first bytes: what the file is, what to do about it
    b"version https://git-lfs.github.com/spec/": ("a Git LFS pointer, not the data", "run `git lfs pull`"),
    b"version https://hawser.github.com/spec/": ("a Git LFS pointer, not the data", "run `git lfs pull`"),
    b"/annex/objects/": ("a git-annex pointer, not the data", "run `git annex get`"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it with gunzip"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "unpack it with `zstd -d`"),
    b"BZh": ("compressed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it with unxz"),
    b"\x04\x22\x4d\x18": ("compressed with LZ4", "unpack it with `lz4 -d`"),
    b"PK\x03\x04": ("a ZIP archive or an Excel file", "unpack it, or export it as CSV"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it"),
    b"PAR1": ("a Parquet file", "give it the suffix .parquet"),
    b"ARROW1": ("an Arrow file", "save it as Parquet"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "save it as Parquet"),
    b"SQLite format 3\x00": ("an SQLite database", "export its rows as JSONL"),
    b"%PDF-": ("a PDF document", "convert it to rows of JSONL"),
}
PAGES = (b"<!doctype html", b"<html")
OWN_SIGNATURES = {".parquet": b"PAR1", ".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}  # of a file that is read
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz"}

RECODE = "if the file is in Windows-1252, Latin-1 or GB18030, convert it with `iconv -f ENCODING -t UTF-8`"


def check_kind(path: Path) -> None:
    """Raise InvalidDataset, with a remedy, for a file that is not what its suffix says, or not a regular file."""
    if is_special(path):
        raise InvalidDataset(f"{path.name} is a pipe, a socket or a device; put the file itself there")
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    suffix = path.suffix.lower()
    own = OWN_SIGNATURES.get(suffix) if suffix == ".parquet" or Path(path.stem).suffix.lower() == ".jsonl" else None
    if own is None or not head.startswith(own):
        check_content(head, path.name)
    if own is not None and suffix != ".parquet" and not head.startswith(own):
        raise InvalidDataset(f"{path.name} is not compressed as its name says; take {path.suffix} away if it is text")


def check_content(head: bytes, name: str) -> None:
    """Raise InvalidDataset, with a remedy, for content that is no text, given how it begins."""
    for signature, (kind, remedy) in SIGNATURES.items():
        if head.startswith(signature):
            raise InvalidDataset(f"{name} is {kind}; {remedy}")
    head = head[:HEAD_BYTES]
    if head.lstrip().lower().startswith(PAGES):
        raise InvalidDataset(f"{name} is a web page, perhaps that of a login; download the data again")
    if head and not head.strip(b"\0"):
        raise InvalidDataset(f"{name} begins with NUL bytes, as a torn download does; fetch it again")


def explain_bytes(error: UnicodeDecodeError, before: int = 0) -> str:
    """Explain what is wrong with bytes that are not UTF-8, after `before` that are, with a remedy."""
    return f"not UTF-8: {error.reason} at byte {before + error.start + 1}; {RECODE}"


def count_parquet_rows(path: Path) -> int:
    """Number of rows in a Parquet file's metadata. Raises InvalidDataset if it is inconsistent or too wide."""
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_metadata(path)
    except MemoryError:  # Arrow's own is one too
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidDataset(f"{path.name} is not a Parquet file: {error}") from error
    check_columns(path.name, found.num_columns)
    rows, grouped = found.num_rows, sum(found.row_group(number).num_rows for number in range(found.num_row_groups))
    if rows != grouped:
        raise InvalidDataset(
            f"{path.name} says that it has {rows} rows, and its row groups have {grouped}; write it again"
        )
    return int(rows)


def check_columns(name: str, count: int) -> None:
    """Raise InvalidDataset for a table with more than MOST_COLUMNS columns."""
    if count > MOST_COLUMNS:
        raise InvalidDataset(
            f"{name} has {count} columns, and no more than {MOST_COLUMNS} are read; leave out those that no row needs"
        )
