"""Settings come from the environment, and an output_dir stays where it may lie."""

import tempfile

import pytest

from jobs.settings import Settings
from sft.errors import InvalidConfig


def test_relative_folders_lie_in_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEYARD_HOME", str(tmp_path / "state"))
    settings = Settings()

    assert settings.model_root == tmp_path / "state" / "models"
    assert settings.output_root == tmp_path / "state" / "outputs"


def test_three_urls_make_every_server_external(tmp_path):
    partly = Settings(home=tmp_path, prefect_api_url="http://p/api", mlflow_tracking_uri="http://m")

    assert not partly.is_external
    assert partly.model_copy(update={"database_url": "postgresql+psycopg2://d/tuneyard"}).is_external


def test_prefect_and_mlflow_are_named_by_their_own_variables(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://p/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")

    assert Settings().prefect_api_url == "http://p/api"
    assert Settings().mlflow_tracking_uri == "http://m"


def test_a_relative_output_dir_lies_below_the_output_root(tmp_path):
    settings = Settings(home=tmp_path)

    assert settings.output_folder("./outputs/sft") == tmp_path / "outputs" / "outputs" / "sft"
    assert settings.output_folder(None) == tmp_path / "outputs"


def test_an_absolute_output_dir_may_lie_in_the_temp_folder(tmp_path):
    folder = f"{tempfile.gettempdir()}/run"

    assert str(Settings(home=tmp_path).output_folder(folder)) == folder


@pytest.mark.parametrize("output_dir", ["..", "../outside", "/etc", "/", "a/../../.."])
def test_an_output_dir_outside_is_refused_by_name(tmp_path, output_dir):
    with pytest.raises(InvalidConfig, match="output_dir must lie under one of"):
        Settings(home=tmp_path).output_folder(output_dir)


def test_a_link_does_not_lead_outside(tmp_path):
    settings = Settings(home=tmp_path)
    settings.output_root.mkdir()
    (settings.output_root / "way-out").symlink_to("/etc")

    with pytest.raises(InvalidConfig, match="output_dir must lie under one of"):
        settings.output_folder("way-out/x")
