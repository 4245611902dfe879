"""The two interface documents in docs/contract, cut into the examples that they show."""

import functools
import json
import re
from typing import Any, NamedTuple

from jobs.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "docs" / "contract"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block and the heading it stands under."""

    heading: str
    language: str
    text: str


class Example(NamedTuple):
    """An endpoint as the SFT document shows it; the body and the answer as written there."""

    method: str
    path: str
    body: str | None
    answer: str


@functools.cache
def read_blocks(name: str) -> tuple[Block, ...]:
    """Every fenced block of a document, in order."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    blocks = []
    for match in _BLOCK.finditer(text):
        headings = _HEADING.findall(_BLOCK.sub("", text[: match.start()]))
        blocks.append(Block(headings[-1], match[1], match[2]))
    return tuple(blocks)


def find_block(name: str, language: str, heading: str) -> str:
    """The one block of this language under this heading."""
    (found,) = [block.text for block in read_blocks(name) if (block.language, block.heading) == (language, heading)]
    return found


def find_json(name: str, heading: str) -> Any:
    """The one JSON block under this heading."""
    return json.loads(find_block(name, "json", heading))


def find_example(name: str, heading: str) -> Example:
    """The endpoint under this heading, written as `METHOD path`, `Body: ...`, `→ answer`."""
    first, *others = find_block(name, "bash", heading).strip().splitlines()
    method, path = first.split()
    bodies = [line.removeprefix("Body: ") for line in others if line.startswith("Body: ")]
    (answer,) = [line.removeprefix("→ ") for line in others if line.startswith("→ ")]
    return Example(method, path, bodies[0] if bodies else None, answer)


def documented_keys(answer: str) -> set[str]:
    """The names of the outermost object in an answer such as `{"job_id": "...", ...}`."""
    return set(re.findall(r'"(\w+)":', re.sub(r"(?<=: )\{.*?\}", "...", answer)))
