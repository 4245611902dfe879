"""The file of `tuneyard generate`: JSON lines with a prompt, or with messages."""

import json
from pathlib import Path
from typing import Any

from tuneyard_cli.problems import UsageProblem

OWN_FIELDS = ("answer", "finish_reason", "tool_calls")  # what is added to a line


def read_questions(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file and the numbers of their lines. Raises UsageProblem, naming the first line that is not one."""
    rows = []
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        place = f"--file {file}: line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_make_object, parse_constant=_refuse_constant)
        except RecursionError:
            raise UsageProblem(f"{place} is nested too deeply") from None
        except ValueError as error:
            raise UsageProblem(f"{place} is not JSON: {error}") from error
        if not _is_question(row):
            raise UsageProblem(
                f"{place} must be a JSON object with a text `prompt` or a list of objects `messages`, not empty"
            )
        if kept := [name for name in OWN_FIELDS if name in row]:
            raise UsageProblem(f"{place} has a field {kept[0]} already; give it another name")
        rows.append((number, row))
    if not rows:
        raise UsageProblem(f"--file {file} has no lines")
    return rows


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageProblem(f"--file {file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageProblem(
            f"--file {file} is not UTF-8 at byte {error.start}; convert it with `iconv -f ENCODING -t UTF-8`"
        ) from error


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {max(names, key=names.count)!r:.80} more than once")
    return made


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _is_question(row: object) -> bool:
    """True for an object with either a text `prompt` or a list `messages`, not empty. `tools` go with `messages`."""
    if not isinstance(row, dict):
        return False
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is None:
        return isinstance(messages, list) and messages != [] and all(isinstance(one, dict) for one in messages)
    return messages is None and row.get("tools") is None and isinstance(prompt, str) and prompt != ""
