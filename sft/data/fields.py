"""Named values of a row or a message that know which of them were read, so that none is passed over in silence."""

from collections.abc import Iterator
from typing import Any

EMPTY: tuple[Any, ...] = (None, "", [], {})


class Fields:
    """The columns of a row or the keys of a message."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._read: set[str] = set()

    def take(self, *names: str) -> Any:
        """The first of these that holds something, else the first that is not null, else None. It counts as read."""
        for is_wanted in (_holds_something, _is_there):
            for name in names:
                if name in self.values and is_wanted(self.values[name]):
                    self._read.add(name)
                    return self.values[name]
        return None

    def list_ignored(self, prefix: str = "") -> Iterator[str]:
        """Names of what holds something and was not read."""
        if self.values.keys() <= self._read:
            return
        for name, value in self.values.items():
            if name not in self._read and value not in EMPTY:
                yield f"{prefix}{name}"


def _holds_something(value: Any) -> bool:
    return value not in EMPTY


def _is_there(value: Any) -> bool:
    return value is not None
