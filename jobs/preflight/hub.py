"""Look up models and datasets in the Hugging Face Hub's local cache and on the Hub."""

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
HUB_SECONDS = 20.0  # for the whole request; TIMEOUT_SECONDS is per read
CACHE_SECONDS = 300.0
UNREACHABLE_SECONDS = 60.0


class Presence(Enum):
    """Result of a look-up on the Hub."""

    THERE = "there"
    ABSENT = "absent"  # or not accessible to this user, which the Hub does not distinguish
    UNUSABLE = "unusable"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


_known: dict[tuple[Kind, str], tuple[float, Presence]] = {}
_name_locks: dict[tuple[Kind, str], threading.Lock] = {}
_unreachable_until = 0.0
_lock = threading.Lock()


def find_cached(kind: Kind, name: str) -> Path | None:
    """Find the newest snapshot of a model or dataset in the local cache; None if there is none."""
    folder = _cache_folder() / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    if not HUB_ID.fullmatch(name) or not folder.is_dir():
        return None
    snapshots = [path for path in folder.iterdir() if kind == "datasets" or (path / "config.json").is_file()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def find_on_hub(kind: Kind, name: str) -> Presence:
    """Look up a name on the Hub, or in the results of the last CACHE_SECONDS. Takes at most HUB_SECONDS."""
    global _unreachable_until
    key = (kind, name)
    with _lock:
        name_lock = _name_locks.setdefault(key, threading.Lock())
    with name_lock:
        found_at, found = _known.get(key, (float("-inf"), Presence.UNKNOWN))
        now = time.monotonic()
        if now - found_at < CACHE_SECONDS:
            return found
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") or now < _unreachable_until:
            return Presence.UNREACHABLE
        found = _request(kind, name)
        if found is Presence.UNREACHABLE:
            _unreachable_until = time.monotonic() + UNREACHABLE_SECONDS
        elif found is Presence.THERE or found is Presence.UNUSABLE:
            _known[key] = (time.monotonic(), found)
        return found


def _request(kind: Kind, name: str) -> Presence:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = _read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = urlsplit(endpoint)
    try:
        if not getproxies():  # fails at once without a network; setting up a client takes longer
            socket.getaddrinfo(address.hostname, address.port or 443)
        url = f"{endpoint}/api/{kind}/{quote(name)}"
        with bound(httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True)) as client, call_deadline(HUB_SECONDS):
            response = client.get(url, headers=headers)
    except (httpx.HTTPError, OSError, UnicodeError):
        return Presence.UNREACHABLE
    if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Presence.ABSENT
    if not response.is_success:
        return Presence.UNKNOWN
    return Presence.THERE if kind == "datasets" or _has_safetensors(response) else Presence.UNUSABLE


def _has_safetensors(response: httpx.Response) -> bool:
    try:
        files: list[dict[str, Any]] = response.json()["siblings"]
        return any(str(file["rfilename"]).endswith(".safetensors") for file in files)
    except (ValueError, KeyError, TypeError):
        return True  # not the documented response, so nothing is known


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
