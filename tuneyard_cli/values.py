"""Read values that users write: YAML and JSON files, and `--set NAME=VALUE`."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from tuneyard_cli.problems import UsageProblem

# The core schema of YAML 1.2, which includes JSON. PyYAML reads YAML 1.1, where 1e-4 is text, `no` is false, 010 is
# eight, 12:30 is 750 and 2026-01-02 is a date.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_EMPTY = ""
MAX_FILE_BYTES = 2**20  # a job has at most 256 KiB as JSON
MAX_VALUES = 100_000  # with what an alias stands for counted at each place; the service takes 20,000


def read_path(text: str) -> Path:
    """A path as it was typed. Raises BadParameter for an empty one, which would be the current folder."""
    if not text:
        raise typer.BadParameter("it is empty; name a file or a folder, or `.` for the current folder")
    return Path(text)


def load_yaml(text: str) -> Any:
    """Parse a YAML 1.2 or JSON document. Raises UsageProblem."""
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's safe loader with YAML 1.2 scalars; duplicate keys are an error."""

        yaml_implicit_resolvers: dict[str, Any] = {}

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None and _count_values(node, {}) > MAX_VALUES:
                raise ValueError(f"it holds more than {MAX_VALUES} values, including those that aliases stand for")
            return node

    def construct_int(loader: Any, node: Any) -> int:
        try:
            number = int(node.value, 0 if re.match("0[ox]", node.value) else 10)
            str(number)
        except ValueError as error:
            raise ValueError(f"the number {node.value:.20}... has more digits than can be read") from error
        return number

    def construct_text(loader: Any, node: Any) -> str:
        text: str = loader.construct_scalar(node)
        return text if text.isascii() else join_surrogates(text)

    def construct_mapping(loader: Any, node: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = yaml.SafeLoader.construct_mapping(loader, node, deep=True)
        if len(found) < len(node.value):
            twice = _find_repeated(loader.construct_object(key, deep=True) for key, _ in node.value)
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return found

    for name, (pattern, first) in _SCALARS.items():
        letters = [*first, *([_EMPTY] if name == "null" else [])]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"), letters)
    Loader.add_constructor("tag:yaml.org,2002:int", construct_int)
    Loader.add_constructor("tag:yaml.org,2002:str", construct_text)
    Loader.add_constructor("tag:yaml.org,2002:map", construct_mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageProblem(f"not valid YAML: {' '.join(str(error).split())}") from error


def _count_values(node: Any, counts: dict[Any, int]) -> int:
    """The values in a node of a YAML document, each as often as it is used."""
    if isinstance(node.value, str):
        return 1
    if node not in counts:
        counts[node] = 0  # of a node within itself, which the constructor refuses
        parts = (part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,)))
        counts[node] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[node]


def _find_repeated(keys: Iterable[Any]) -> Any:
    return next(key for key, count in Counter(keys).items() if count > 1)


def join_surrogates(text: str) -> str:
    r"""Join the halves of a character that JSON writes as `\ud83d\ude00`. Raises ValueError for a half alone."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text!r:.80} holds half a character (a lone surrogate)") from error


def is_null(text: str) -> bool:
    """Whether YAML reads this as null."""
    return re.fullmatch(_SCALARS["null"][0], text.strip()) is not None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read fields from a YAML or JSON file. Raises UsageProblem."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise UsageProblem(f"{path} has more than {MAX_FILE_BYTES} bytes; no job is as large")
        values = _load_file(path, content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{path} cannot be read as UTF-8 text: {error}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise UsageProblem(f"{path} must hold a mapping of fields, got {found}")
    if not_text := [key for key in values if not isinstance(key, str)]:
        raise UsageProblem(f"{path} must hold a mapping of fields, got {not_text[0]!r:.80} for a field's name")
    return check_json(values, str(path))


def _load_file(path: Path, text: str) -> Any:
    try:
        return load_yaml(text)
    except UsageProblem as error:
        raise UsageProblem(f"{path} is {error}") from error


def read_pairs(option: str, pairs: list[str]) -> dict[str, str]:
    """Parse KEY=VALUE options. Raises UsageProblem."""
    for pair in pairs:
        if not pair.partition("=")[0].strip() or "=" not in pair:
            raise UsageProblem(f"{option} {pair!r} must be KEY=VALUE")
    return {key.strip(): value for key, _, value in (pair.partition("=") for pair in pairs)}


def check_json(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return values that JSON in UTF-8 can hold: no dates, NaN, infinity or lone surrogates.

    Raises:
        UsageProblem: names the field.
    """
    for name, value in values.items():
        try:
            json.dumps({name: value}, allow_nan=False, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            problem = f"{place}: {name} holds text that is not UTF-8"
            raise UsageProblem(f"{problem}: {error.object[error.start : error.end]!r:.80}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageProblem(f"{place}: {name} must be a JSON value, got {value!r:.80}") from error
    return values
