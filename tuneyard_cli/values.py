"""Read values that users write: YAML and JSON files, and `--set NAME=VALUE`."""

import json
import re
from pathlib import Path
from typing import Any

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


def load_yaml(text: str) -> Any:
    """Parse a YAML 1.2 or JSON document. Raises UsageProblem."""
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's safe loader with YAML 1.2 scalars; duplicate keys are an error."""

        yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_int(loader: Any, node: Any) -> int:
        return int(node.value, 0 if re.match("0[ox]", node.value) else 10)

    def construct_mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        found: dict[Any, Any] = yaml.SafeLoader.construct_mapping(loader, node, deep=True)
        return found

    for name, (pattern, first) in _SCALARS.items():
        letters = [*first, *([_EMPTY] if name == "null" else [])]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"), letters)
    Loader.add_constructor("tag:yaml.org,2002:int", construct_int)
    Loader.add_constructor("tag:yaml.org,2002:map", construct_mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageProblem(f"not valid YAML: {' '.join(str(error).split())}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read fields from a YAML or JSON file. Raises UsageProblem."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{path} cannot be read as UTF-8 text: {error}") from error
    except UsageProblem as error:
        raise UsageProblem(f"{path} is {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageProblem(f"{path} must hold a mapping of fields, got {type(values).__name__}")
    return check_json(values, str(path))


def read_pairs(option: str, pairs: list[str]) -> dict[str, str]:
    """Parse KEY=VALUE options. Raises UsageProblem."""
    for pair in pairs:
        if not pair.partition("=")[0].strip() or "=" not in pair:
            raise UsageProblem(f"{option} {pair!r} must be KEY=VALUE")
    return {key.strip(): value for key, _, value in (pair.partition("=") for pair in pairs)}


def check_json(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return values that JSON can represent: no dates, NaN or infinity. Raises UsageProblem, which names the field."""
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageProblem(f"{place}: {name} must be a JSON value, got {value!r:.80}") from error
    return values
