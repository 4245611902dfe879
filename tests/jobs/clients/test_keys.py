"""The cached API keys of a running API."""

import pytest

from jobs.clients.keys import ApiKeyCache, ApiKeySnapshot, remember_keys
from sft.errors import StackError


def test_the_first_key_made_on_this_machine_counts_at_once(tmp_path):
    snapshots = [ApiKeySnapshot({}, is_open=True)]
    cache = ApiKeyCache(lambda: snapshots[-1], tmp_path / "home/api-keys-in-use")
    assert cache.refresh(None).is_open
    assert cache.fresh_snapshot(None)
    snapshots.append(ApiKeySnapshot({}, is_open=False))
    remember_keys(tmp_path / "home/api-keys-in-use")  # as `tuneyard keys create` does
    assert cache.fresh_snapshot(None) is None
    assert not cache.refresh(None).is_open


def test_a_database_without_keys_beside_the_marker_opens_nothing(tmp_path):
    """Another database under the same state folder, a restored or an emptied one."""
    remember_keys(tmp_path / "marker")
    cache = ApiKeyCache(lambda: ApiKeySnapshot({}, is_open=True), tmp_path / "marker")
    with pytest.raises(StackError, match="API keys were in use here"):
        cache.refresh(None)
