"""Read the outputs that DVC's files name, safely for untrusted files.

YAML's aliases and merge keys can expand a few lines to gigabytes, and deep nesting overflows libyaml's stack. So the
depth is checked first, and then nodes are read without constructing objects.
"""

from collections.abc import Iterator

import yaml

from jobs.preflight.repository import NotKnown

MAX_DEPTH = 64
MAX_BYTES = 2**20  # takes half a second
MERGE = "tag:yaml.org,2002:merge"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STARTS = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_ENDS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


def read_outputs(text: bytes) -> Iterator[str]:
    """Yield the outputs of a `.dvc`, `dvc.yaml` or `dvc.lock` file; none if it is not YAML.

    Raises:
        NotKnown: it is nested too deep, or has merge keys, which are not supported.
    """
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeError):
        return
    stages = _find(root, "stages")
    for stage in [root, *(value for _, value in _items(stages))]:
        outputs = _find(stage, "outs")
        for output in outputs.value if isinstance(outputs, yaml.SequenceNode) else []:
            path = output
            if isinstance(output, yaml.MappingNode):
                path = _find(output, "path") or next((key for key, _ in _items(output)), None)
            if isinstance(path, yaml.ScalarNode) and path.value and "${" not in path.value:
                yield path.value


def _check_depth(text: bytes) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, _STARTS) - isinstance(event, _ENDS)
        if depth > MAX_DEPTH:
            raise NotKnown(f"nested deeper than {MAX_DEPTH}")


def _items(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.tag == MERGE:
            raise NotKnown("merge keys are not supported")
        yield key, value


def _find(node: yaml.Node | None, name: str) -> yaml.Node | None:
    return next((value for key, value in _items(node) if key.value == name), None)
