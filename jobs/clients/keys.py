"""API keys with scopes read, submit and admin. A key is displayed once and stored only as a hash."""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from jobs.errors import KeyNotFound
from jobs.storage.tables import ApiKey
from sft.errors import InvalidConfig, StackError

logger = logging.getLogger(__name__)

KEY_MARK = "ty_"  # prefix by which scanners find leaked keys
SHOWN_CHARACTERS = 11  # of a key, in lists
TTL_SECONDS = 3.0  # a revoked key works at most this long
NEW_KEY_SECONDS = 1.0  # a new key is refused at most this long


class KeyScope(StrEnum):
    """What a key allows; each scope includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, other: "KeyScope") -> bool:
        """Whether this scope covers `other`."""
        order = list(KeyScope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Client:
    """The client that sent a request. `owner_id` owns the jobs it makes: its key, or the key that its key is for."""

    key_id: UUID
    name: str
    scope: KeyScope
    owner_id: UUID


@dataclass(frozen=True)
class ApiKeySnapshot:
    """The valid keys, by their SHA-256. `is_open`: no key was ever created, so none is required."""

    clients: Mapping[str, Client]
    is_open: bool


def create_key(engine: Engine, name: str, scope: KeyScope, owner_id: UUID | None = None) -> tuple[ApiKey, str]:
    """Create a key; returns its record and the key, which is not stored. Raises InvalidConfig for a blank name.

    Args:
        owner_id: Owner of the jobs that it sees and makes; itself if None.
    """
    if not name.strip() or not name.isprintable():
        raise InvalidConfig(f"name must be printable and not blank, got {name!r}")
    key = KEY_MARK + secrets.token_urlsafe(32)
    # A random key of 256 bits can't be guessed from its hash; slow hashes are needed for passwords only.
    record = ApiKey(
        name=name.strip(),
        prefix=key[:SHOWN_CHARACTERS],
        key_sha256=hash_key(key),
        scopes=[scope.value],
        owner_id=owner_id,
    )
    with Session(engine, expire_on_commit=False) as session:
        session.add(record)
        session.commit()
        session.refresh(record)
    return record, key


def list_keys(engine: Engine) -> list[ApiKey]:
    """All keys, revoked ones included, oldest first."""
    with Session(engine, expire_on_commit=False) as session:
        return [*session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))]


def find_key(engine: Engine, key_id: str) -> ApiKey:
    """The key of this id. Raises KeyNotFound."""
    with Session(engine, expire_on_commit=False) as session:
        return _get(session, key_id)


def revoke_key(engine: Engine, key_id: str) -> ApiKey:
    """Revoke a key permanently; repeating it changes nothing. Raises KeyNotFound."""
    with Session(engine, expire_on_commit=False) as session:
        record = _get(session, key_id)
        record.revoked_at = record.revoked_at or datetime.now(UTC)
        session.commit()
        return record


def _get(session: Session, key_id: str) -> ApiKey:
    unknown = KeyNotFound(f"API key {key_id} not found; `tuneyard keys list` shows them")
    try:
        record = session.get(ApiKey, UUID(key_id))
    except ValueError as error:
        raise unknown from error
    if record is None:
        raise unknown
    return record


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_snapshot(engine: Engine) -> ApiKeySnapshot:
    """Read the keys from the database. Revoking the last key does not open the service again."""
    records = list_keys(engine)
    clients = {
        record.key_sha256: Client(record.id, record.name, _read_scope(record), record.owner_id or record.id)
        for record in records
        if record.revoked_at is None
    }
    return ApiKeySnapshot(clients, is_open=not records)


def _read_scope(record: ApiKey) -> KeyScope:
    return max(map(KeyScope, record.scopes), key=list(KeyScope).index)


class ApiKeyCache:
    """Caches the snapshot of the keys for a few seconds, so that a request needs no query. Thread-safe.

    Once a key was created, authentication stays on even if the database is lost: see `marker`.
    """

    def __init__(self, read: Callable[[], ApiKeySnapshot], marker: Path) -> None:
        self._read = read
        self._marker = marker  # a file that outlives this process, and the database
        self.last_snapshot: ApiKeySnapshot | None = None
        self._read_at = 0.0
        self._failure: tuple[float, StackError] | None = None  # of the last read, if it failed
        self._lock = threading.Lock()

    @property
    def is_known_to_be_closed(self) -> bool:
        """Whether keys are known to be in use, without asking the database."""
        is_seen = self.last_snapshot is not None and not self.last_snapshot.is_open
        return is_seen or self._marker.exists()

    def fresh_snapshot(self, key: str | None) -> ApiKeySnapshot | None:
        """The snapshot, if it is recent enough for this key; else None, and the caller must `refresh`."""
        snapshot, age = self.last_snapshot, time.monotonic() - self._read_at
        if snapshot is None or age > TTL_SECONDS or (snapshot.is_open and self._marker.exists()):
            return None
        is_unknown = key is not None and not snapshot.is_open and hash_key(key) not in snapshot.clients
        return None if is_unknown and age > NEW_KEY_SECONDS else snapshot

    def refresh(self, key: str | None) -> ApiKeySnapshot:
        """Read the snapshot, or wait for another thread that does; waiting threads get its error too."""
        asked_at = time.monotonic()
        with self._lock:
            snapshot = self.fresh_snapshot(key)
            if snapshot is None:
                if self._failure and self._failure[0] > asked_at:
                    raise type(self._failure[1])(str(self._failure[1]))
                snapshot = self._read_or_remember()
                self._keep_closed(snapshot)
                self.last_snapshot, self._read_at = snapshot, time.monotonic()
            return snapshot

    def _read_or_remember(self) -> ApiKeySnapshot:
        try:
            snapshot = self._read()
        except StackError as error:
            self._failure = (time.monotonic(), error)
            raise
        self._failure = None
        return snapshot

    def _keep_closed(self, snapshot: ApiKeySnapshot) -> None:
        """Refuse a database without keys where there were some. Raises StackError."""
        was_closed = self.last_snapshot is not None and not self.last_snapshot.is_open
        if not snapshot.is_open:
            if not was_closed:
                remember_keys(self._marker)
        elif was_closed or self._marker.exists():
            raise StackError(
                "API keys were in use here, and the database holds none: it is another one, or was emptied. Restore "
                "it, or make a key with `tuneyard keys create NAME`"
            )


def keys_marker(home: Path) -> Path:
    """Path of the file in the state folder that marks API keys as in use."""
    return home / "api-keys-in-use"


def remember_keys(marker: Path) -> None:
    """Write the marker. A failure is only logged, as this process remembers in memory."""
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch(mode=0o600)
    except OSError as error:
        logger.warning("%s could not be made (%s): a restarted API will not know that keys are in use", marker, error)
