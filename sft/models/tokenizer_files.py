"""Checks the files of a tokenizer without loading it."""

from pathlib import Path

from sft.errors import ModelUnusable
from sft.models.weights import find_pointer

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def check_tokenizer(folder: Path, subject: str) -> None:
    """Check that there is a tokenizer, which is not cut off. Raises ModelUnusable."""
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise ModelUnusable(f"{subject} has no tokenizer ({TOKENIZERS[0]}); copy or download its files too")
    if (folder / TOKENIZERS[0]).is_file() and not _is_json_object(folder / TOKENIZERS[0]):
        reason = find_pointer(folder) or f"has a damaged {TOKENIZERS[0]}; copy or download it again"
        raise ModelUnusable(f"{subject} {reason}")


def _is_json_object(path: Path) -> bool:
    """Whether a file begins and ends as a JSON object does; one that was cut off does not."""
    with path.open("rb") as file:
        begin = file.read(64)
        file.seek(max(0, path.stat().st_size - 64))
        return begin.lstrip().startswith(b"{") and file.read().rstrip().endswith(b"}") and path.stat().st_size > 1
