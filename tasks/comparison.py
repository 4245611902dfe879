"""Compares the held-out loss of a new version of an adapter with that of the previous one, if comparable."""

import hashlib
from typing import Any, NamedTuple

from sft.data.mixing import AnyRows


class Version(NamedTuple):
    """The compared tags of a version; None if missing."""

    number: str
    eval_loss: float | None
    held_out: str | None  # digest of the held-out rows


def digest_held_out(rows: AnyRows) -> str | None:
    """SHA-256 of the held-out rows' tokens and labels, in order; None without any."""
    import pyarrow.compute as pc

    held_out = rows.load_eval()
    if held_out is None:
        return None
    digest = hashlib.sha256()
    for name in ("input_ids", "labels"):
        column = held_out.data.column(name)
        for values in (pc.list_flatten(column), pc.list_value_length(column)):
            for chunk in values.chunks:
                digest.update(chunk.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def read_version(number: str, tags: dict[str, str]) -> Version:
    """Read a version's tags."""
    loss = tags.get("eval_loss", "None")
    return Version(number, None if loss == "None" else float(loss), tags.get("held_out") or None)


def compare(new: Version, previous: Version | None) -> dict[str, Any]:
    """`previous_version, previous_eval_loss, is_worse, comparison` of a job's result.

    `is_worse` is null if the losses can't be compared; `comparison` is a sentence.
    """
    if previous is None:
        return {"previous_version": None, "previous_eval_loss": None, "is_worse": None, "comparison": None}
    facts = {"previous_version": previous.number, "previous_eval_loss": previous.eval_loss}
    if why_not := _why_not_comparable(new, previous):
        said = f"version {new.number} can't be compared with version {previous.number}: {why_not}"
        return facts | {"is_worse": None, "comparison": said}
    assert new.eval_loss is not None  # noqa: S101 - for the type checker
    assert previous.eval_loss is not None  # noqa: S101
    is_worse = new.eval_loss > previous.eval_loss
    how = "worse than" if is_worse else "no worse than"
    losses = f"held-out loss {new.eval_loss:.4g} after {previous.eval_loss:.4g} on the same rows"
    said = f"version {new.number} is {how} version {previous.number}: {losses}"
    if is_worse:
        said += f"; models:/<name>/latest is the worse one now, version {previous.number} is kept"
    return facts | {"is_worse": is_worse, "comparison": said}


def _why_not_comparable(new: Version, previous: Version) -> str | None:
    if new.eval_loss is None:
        return "no rows were held out from it"
    if previous.eval_loss is None:
        return "no rows were held out from the earlier one"
    if previous.held_out is None:
        return "the earlier one does not say which rows were held out"
    return "other rows were held out" if previous.held_out != new.held_out else None
