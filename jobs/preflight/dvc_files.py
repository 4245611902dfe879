"""The outputs that DVC's files name, whoever wrote them.

YAML's aliases and merge keys make gigabytes of a few lines, and libyaml's composer fills the stack where they nest
deep. So no objects are made of such a file: its depth is looked at first, then its nodes.
"""

from collections.abc import Iterator

import yaml

from jobs.preflight.repository import NotKnown

DEEPEST = 64
LARGEST = 2**20  # bytes; half a second's work
MERGE = "tag:yaml.org,2002:merge"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STARTS = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_ENDS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


def read_outputs(text: bytes) -> Iterator[str]:
    """The outputs in a `.dvc`, `dvc.yaml` or `dvc.lock` file; none in one that is not YAML.

    Raises:
        NotKnown: it is nested deep, or has merge keys, which are not followed.
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
            named = output
            if isinstance(output, yaml.MappingNode):
                named = _find(output, "path") or next((key for key, _ in _items(output)), None)
            if isinstance(named, yaml.ScalarNode) and named.value and "${" not in named.value:
                yield named.value


def _check_depth(text: bytes) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, _STARTS) - isinstance(event, _ENDS)
        if depth > DEEPEST:
            raise NotKnown(f"nested deeper than {DEEPEST}")


def _items(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.tag == MERGE:
            raise NotKnown("merge keys are not followed")
        yield key, value


def _find(node: yaml.Node | None, name: str) -> yaml.Node | None:
    return next((value for key, value in _items(node) if key.value == name), None)
