"""The password of the local Prefect server; what the server makes of it is in tests/hostile/test_guarded_stack.py."""

from base64 import b64encode
from pathlib import Path

import pytest

from jobs.engine.credentials import find_credentials, find_password, guard_server, profile_path
from jobs.settings import Settings
from jobs.stack.endpoints import Endpoints

LOCAL = "http://127.0.0.1:4200/api"


def test_the_password_is_private_and_stays_from_start_to_start(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=LOCAL)
    assert find_password(settings) is None
    guard_server(settings, is_needed=True)
    password = find_password(settings)
    assert password is not None
    assert password.startswith("tuneyard:")
    assert len(password) > 40
    assert profile_path(tmp_path).stat().st_mode & 0o777 == 0o600
    guard_server(settings, is_needed=True)
    assert find_password(settings) == password
    guard_server(settings, is_needed=False)
    assert find_password(settings) is None


def test_it_is_shown_to_the_server_it_is_of_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Settings(home=tmp_path, prefect_api_url=LOCAL)
    guard_server(local, is_needed=True)
    elsewhere = Settings(home=tmp_path, prefect_api_url="https://prefect.example/api")
    assert find_credentials(elsewhere) == {}
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_x")
    assert find_credentials(elsewhere) == {"Authorization": "Bearer pnu_x"}
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:hidden1")
    elsewhere = Settings(home=tmp_path, prefect_api_url="https://prefect.example/api")
    assert find_credentials(elsewhere) == {"Authorization": f"Basic {b64encode(b'me:hidden1').decode()}"}
    assert find_password(local) not in (None, "me:hidden1")
    shown = repr(
        elsewhere.model_copy(update={"database_url": "x://u:hidden1@h", "dataset_registry": "x://u:hidden1@h"})
    )
    assert "hidden1" not in shown


def test_whoever_finds_the_stack_finds_its_password(tmp_path: Path) -> None:
    """So that a service that was opened before the password was is opened anew."""
    addresses = {"database_url": "postgresql://x", "prefect_api_url": LOCAL, "mlflow_tracking_uri": "http://m"}
    endpoints = Endpoints(True, addresses, tuple(addresses), ())
    before = endpoints.fill(Settings(home=tmp_path))
    guard_server(before, is_needed=True)
    after = endpoints.fill(Settings(home=tmp_path))
    assert before.prefect_auth_string is None
    assert after.prefect_auth_string is not None
    assert after.prefect_auth_string.get_secret_value() == find_password(after)
    assert after != before
