"""`ConfigStore`: saved configurations with all their versions."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from jobs.errors import ConfigNotFound
from jobs.sanitizing.storable import find_unstorable_text, is_storable
from jobs.storage.connections import translate_errors
from jobs.storage.id_prefixes import id_range
from jobs.storage.tables import SavedConfig, SavedConfigVersion
from sft.config import JOB_BYTES, NAME_CHARACTERS, SFTConfig
from sft.errors import InvalidConfig
from sft.explanations import explain_problems


class ConfigStore:
    """Named configurations, complete or partial. An update makes a new version; old versions stay readable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def save(self, name: str, config: dict[str, Any]) -> SavedConfig:
        """Save a configuration under a new id, as version 1.

        Raises:
            InvalidConfig: a field is not known, or a value can't be stored.
        """
        _check(name, config, config)
        saved = SavedConfig(name=name, config=config, version=1)
        with self._session() as session:
            session.add(saved)
            session.flush()
            session.add(_version_of(saved))
            session.commit()
        return saved

    def get(self, config_id: UUID | str) -> SavedConfig:
        """One configuration. Raises ConfigNotFound for an unknown or deleted one."""
        with self._session() as session:
            return _find(session, config_id)

    def read_all(
        self, limit: int | None = None, offset: int = 0, name: str | None = None, id_prefix: str | None = None
    ) -> list[SavedConfig]:
        """List configurations that are not deleted, oldest first; by name or id prefix if given."""
        wanted = select(SavedConfig).where(SavedConfig.deleted_at.is_(None))
        if name is not None:
            if not is_storable(name):
                return []
            wanted = wanted.where(SavedConfig.name == name)
        if id_prefix is not None:
            wanted = wanted.where(SavedConfig.config_id.between(*id_range(id_prefix)))
        wanted = wanted.order_by(SavedConfig.created_at, SavedConfig.config_id).limit(limit).offset(offset)
        with self._session() as session:
            return [*session.scalars(wanted)]

    def update(
        self, config_id: UUID | str, name: str | None, config: dict[str, Any] | None, merge: bool = False
    ) -> SavedConfig:
        """Save a new version; None keeps a value. `merge` merges the config into the present one, key by key."""
        with self._session() as session:
            saved = _find(session, config_id, lock=True)
            if config is not None:
                saved.config = {**saved.config, **config} if merge else config
            saved.name = saved.name if name is None else name
            _check(saved.name, saved.config, config or {})
            saved.version += 1
            saved.updated_at = datetime.now(UTC)
            session.add(_version_of(saved))
            session.commit()
            return saved

    def delete(self, config_id: UUID | str) -> None:
        """Mark a configuration as deleted; jobs made from it keep its name."""
        with self._session() as session:
            _find(session, config_id, lock=True).deleted_at = datetime.now(UTC)
            session.commit()

    def versions(self, config_id: UUID | str) -> list[SavedConfigVersion]:
        """All versions, oldest first."""
        with self._session() as session:
            saved = _find(session, config_id)
            wanted = select(SavedConfigVersion).where(SavedConfigVersion.config_id == saved.config_id)
            return [*session.scalars(wanted.order_by(SavedConfigVersion.version))]

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with translate_errors(), Session(self._engine, expire_on_commit=False) as session:
            yield session


def _find(session: Session, config_id: UUID | str, lock: bool = False) -> SavedConfig:
    try:
        parsed = config_id if isinstance(config_id, UUID) else UUID(config_id)
    except ValueError as error:
        raise ConfigNotFound(f"Config {config_id} not found") from error
    saved = session.get(SavedConfig, parsed, with_for_update=lock or None)
    if saved is None or saved.deleted_at is not None:
        raise ConfigNotFound(f"Config {config_id} not found")
    return saved


def _version_of(saved: SavedConfig) -> SavedConfigVersion:
    return SavedConfigVersion(config_id=saved.config_id, version=saved.version, name=saved.name, config=saved.config)


def _check(name: str, config: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse values that can't be stored and unknown fields in `given`; values are validated when a job is made."""
    if len(name) > NAME_CHARACTERS:
        raise InvalidConfig(f"name: must have at most {NAME_CHARACTERS} characters, it has {len(name)}")
    try:
        size = len(json.dumps(config, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"config: must be plain JSON values: {error}") from error
    if size > JOB_BYTES:
        raise InvalidConfig(f"config: must have at most {JOB_BYTES} bytes as JSON, it has {size}")
    if found := find_unstorable_text({"name": name, "config": config}):
        raise InvalidConfig(f"{'.'.join(found)} must hold neither NUL characters nor lone surrogates")
    strangers = [{"type": "extra_forbidden", "loc": (key,)} for key in given if key not in SFTConfig.model_fields]
    if strangers:
        raise InvalidConfig(explain_problems(strangers, [*SFTConfig.model_fields]))
