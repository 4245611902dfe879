"""Recognizes a data file's real type by its first bytes, and reads text in UTF-8, UTF-16 or UTF-32."""

import json
from pathlib import Path

from sft.errors import InvalidDataset
from sft.files.places import is_special

HEAD_BYTES = 512
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
PARQUET = b"PAR1"
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz"}

RECODE = "if the file is in Windows-1252, Latin-1 or GB18030, convert it with `iconv -f ENCODING -t UTF-8`"


def check_kind(path: Path) -> None:
    """Raise InvalidDataset, with a remedy, for a file that is not what its suffix says, or not a regular file."""
    if is_special(path):
        raise InvalidDataset(f"{path.name} is a pipe, a socket or a device; put the file itself there")
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    is_parquet = path.suffix.lower() == ".parquet"
    for signature, (kind, remedy) in SIGNATURES.items():
        if head.startswith(signature) and not (is_parquet and signature == PARQUET):
            raise InvalidDataset(f"{path.name} is {kind}; {remedy}")
    if head.lstrip().lower().startswith(PAGES):
        raise InvalidDataset(f"{path.name} is a web page, perhaps that of a login; download the data again")
    if head and not head.strip(b"\0"):
        raise InvalidDataset(f"{path.name} begins with NUL bytes, as a torn download does; fetch it again")


def read_utf8(path: Path) -> bytes:
    """A text file's content as UTF-8 without a byte order mark; UTF-16 and UTF-32 are converted.

    Those two are recognized by their byte order mark, or by the positions of zero bytes in the first characters.
    Bytes that are not UTF-8 are left for the reader to report, row by row.
    """
    content = path.read_bytes()
    encoding = json.detect_encoding(content[:4])
    if encoding in ("utf-8", "utf-8-sig"):
        return content.removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode(encoding).removeprefix("\ufeff").encode("utf-8")
    except UnicodeError as error:
        raise InvalidDataset(
            f"{path.name} looks like {encoding.upper()} but is damaged ({error}); save it as UTF-8"
        ) from error


def is_utf8(path: Path) -> bool:
    """Whether a text file can be read without conversion, apart from a byte order mark."""
    with path.open("rb") as stream:
        return json.detect_encoding(stream.read(4)) in ("utf-8", "utf-8-sig")


def explain_bytes(error: UnicodeDecodeError) -> str:
    """Explain what is wrong with bytes that are not UTF-8, with a remedy."""
    return f"not UTF-8: {error.reason} at byte {error.start + 1}; {RECODE}"
