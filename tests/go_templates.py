"""Renders Ollama's templates: those in `sft/chat/ollama` in Python, any with Go's own `text/template`."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("render_go_template.go")
TOKEN = re.compile(r'\(|\)|"(?:[^"\\]|\\.)*"|\$?[\w.$]+|:=|,')


def find_go() -> str | None:
    """The path of a Go compiler."""
    return shutil.which("go")


def render_with_go(go: str, cases: list[tuple[str, list[dict[str, str]]]], cache: Path) -> list[str]:
    """Render with Go's `text/template`, and the variables that Ollama sets."""
    given = json.dumps([{"template": text, "messages": messages} for text, messages in cases])
    environment = os.environ | {"GOCACHE": str(cache), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", "HOME": str(cache)}
    done = subprocess.run([go, "run", str(PROGRAM)], input=given, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rendered: list[str] = json.loads(done.stdout)
    return rendered


def render(template: str, messages: list[dict[str, str]]) -> str:
    """Render the subset of Go's template language that our templates use."""
    top = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    top["System"] = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    nodes, rest = _parse(_split(template))
    assert rest == []
    return _run(nodes, top, {"$": top})


def _split(template: str) -> list[tuple[bool, str]]:
    """Text and actions, without what trim markers remove."""
    parts: list[tuple[bool, str]] = []
    position = 0
    is_trimmed = False
    for found in re.finditer(r"\{\{(- )?(.*?)( -)?\}\}", template, re.DOTALL):
        text = template[position : found.start()]
        text = text.lstrip() if is_trimmed else text
        parts += [(False, text.rstrip() if found[1] else text), (True, found[2].strip())]
        position, is_trimmed = found.end(), bool(found[3])
    text = template[position:]
    return [*parts, (False, text.lstrip() if is_trimmed else text)]


def _parse(parts: list[tuple[bool, str]]) -> tuple[list[Any], list[tuple[bool, str]]]:
    nodes: list[Any] = []
    while parts:
        (is_action, text), *parts = parts
        word = text.split(" ", 1)[0]
        if not is_action:
            nodes.append(text)
        elif word in ("end", "else"):
            return nodes, [(is_action, text), *parts]
        elif word in ("if", "range"):
            body, parts = _parse(parts)
            other: list[Any] = []
            (_, closing), *parts = parts
            if closing.startswith("else if"):
                other, parts = _parse([(True, closing.removeprefix("else ")), *parts])
            elif closing == "else":
                other, parts = _parse(parts)
                parts = parts[1:]
            nodes.append((word, text[len(word) :].strip(), body, other))
            if closing.startswith("else if"):
                return nodes, parts
        else:
            nodes.append(("write", text, [], []))
    return nodes, parts


def _run(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    written = ""
    for node in nodes:
        if isinstance(node, str):
            written += node
            continue
        kind, text, body, other = node
        if kind == "range":
            left, _, right = text.rpartition(":=")
            variables = [name.strip() for name in left.split(",") if name.strip()]
            for index, value in enumerate(_evaluate(right, dot, names)):
                inner = names | dict(zip(variables, (index, value), strict=bool(variables)))
                written += _run(body, value, inner)
        elif kind == "if":
            written += _run(body if _evaluate(text, dot, names) else other, dot, names)
        elif ":=" in text:
            name, _, value = text.partition(":=")
            names[name.strip()] = _evaluate(value, dot, names)
        else:
            written += str(_evaluate(text, dot, names))
    return written


def _evaluate(text: str, dot: Any, names: dict[str, Any]) -> Any:
    tokens = TOKEN.findall(text)
    value, rest = _call(tokens, dot, names)
    assert rest == [], text
    return value


def _call(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    """A value, or a function with its arguments, up to the end or a closing bracket."""
    first, *rest = tokens
    functions = {
        "and": lambda *values: next((value for value in values if not value), values[-1]),
        "or": lambda *values: next((value for value in values if value), values[-1]),
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "gt": lambda a, b: a > b,
        "index": lambda values, index: values[index],
    }
    if first not in functions:
        return _value(tokens, dot, names)
    arguments = []
    while rest and rest[0] != ")":
        value, rest = _value(rest, dot, names)
        arguments.append(value)
    return functions[first](*arguments), rest


def _value(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    first, *rest = tokens
    if first == "(":
        value, rest = _call(rest, dot, names)
        assert rest.pop(0) == ")"
        if rest and rest[0].startswith("."):
            value, rest = value[rest[0][1:]], rest[1:]
        return value, rest
    if first.startswith('"'):
        return json.loads(first), rest
    if first.isdigit():
        return int(first), rest
    name, _, path = first.partition(".")
    value = names[name] if name else dot
    for part in filter(None, path.split(".")):
        value = value[part]
    return value, rest
