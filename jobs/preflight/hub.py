"""The Hugging Face Hub: what its local cache has, and what it says of a name, asked once in a while."""

import os
import re
import socket
import threading
import time
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import httpx

from jobs.network.bounded_http import bound
from jobs.network.deadlines import call_deadline

Kind = Literal["models", "datasets"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TIMEOUT_SECONDS = 5.0
HUB_SECONDS = 20.0  # for all of it, however slowly it comes
KNOWN_SECONDS = 300.0
UNREACHABLE_SECONDS = 60.0


class Presence(Enum):
    """What the Hub says of a name."""

    THERE = "there"
    ABSENT = "absent"  # or closed to this user, which the Hub does not tell apart
    UNUSABLE = "unusable"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


_known: dict[tuple[Kind, str], tuple[float, Presence]] = {}
_asking: dict[tuple[Kind, str], threading.Lock] = {}
_unreachable_until = 0.0
_lock = threading.Lock()


def find_cached(kind: Kind, name: str) -> Path | None:
    """The newest snapshot of a model or dataset in the local cache; None without one."""
    folder = _cache_folder() / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    if not HUB_ID.fullmatch(name) or not folder.is_dir():
        return None
    snapshots = [path for path in folder.iterdir() if kind == "datasets" or (path / "config.json").is_file()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def find_on_hub(kind: Kind, name: str) -> Presence:
    """What the Hub says of a name, now or a few minutes ago. Takes as long as the Hub does, seconds at most."""
    global _unreachable_until
    key = (kind, name)
    with _lock:
        asked_by = _asking.setdefault(key, threading.Lock())
    with asked_by:
        asked_at, found = _known.get(key, (float("-inf"), Presence.UNKNOWN))
        now = time.monotonic()
        if now - asked_at < KNOWN_SECONDS:
            return found
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") or now < _unreachable_until:
            return Presence.UNREACHABLE
        found = _ask(kind, name)
        if found is Presence.UNREACHABLE:
            _unreachable_until = time.monotonic() + UNREACHABLE_SECONDS
        elif found is Presence.THERE or found is Presence.UNUSABLE:
            _known[key] = (time.monotonic(), found)
        return found


def _ask(kind: Kind, name: str) -> Presence:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = _read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = urlsplit(endpoint)
    try:
        if not getproxies():  # without a network this fails at once, long before a client has been set up
            socket.getaddrinfo(address.hostname, address.port or 443)
        url = f"{endpoint}/api/{kind}/{quote(name)}"
        with bound(httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True)) as client, call_deadline(HUB_SECONDS):
            answer = client.get(url, headers=headers)
    except (httpx.HTTPError, OSError, UnicodeError):
        return Presence.UNREACHABLE
    if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Presence.ABSENT
    if not answer.is_success:
        return Presence.UNKNOWN
    return Presence.THERE if kind == "datasets" or _has_safetensors(answer) else Presence.UNUSABLE


def _has_safetensors(answer: httpx.Response) -> bool:
    try:
        files: list[dict[str, Any]] = answer.json()["siblings"]
        return any(str(file["rfilename"]).endswith(".safetensors") for file in files)
    except (ValueError, KeyError, TypeError):
        return True  # not the answer that is documented: nothing is known


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser()


def _cache_folder() -> Path:
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else _home() / "hub"


def _read_token() -> str | None:
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    try:
        return Path(os.environ.get("HF_TOKEN_PATH", _home() / "token")).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None
