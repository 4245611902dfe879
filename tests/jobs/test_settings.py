"""Settings come from the environment, and an output_dir stays where it may lie."""

import tempfile
from pathlib import Path

import pytest

from jobs import project
from jobs.folders import output_folder
from jobs.project import default_home
from jobs.settings import Settings
from sft.errors import InvalidConfig, StackError


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

    assert output_folder(settings, "./outputs/sft") == tmp_path / "outputs" / "outputs" / "sft"
    assert output_folder(settings, None) == tmp_path / "outputs"


def test_an_absolute_output_dir_may_lie_in_the_temp_folder(tmp_path):
    folder = f"{tempfile.gettempdir()}/run"

    assert str(output_folder(Settings(home=tmp_path), folder)) == folder


@pytest.mark.parametrize("output_dir", ["..", "../outside", "/etc", "/", "a/../../.."])
def test_an_output_dir_outside_is_refused_by_name(tmp_path, output_dir):
    with pytest.raises(InvalidConfig, match="output_dir must be in one of"):
        output_folder(Settings(home=tmp_path), output_dir)


def test_a_link_does_not_lead_outside(tmp_path):
    settings = Settings(home=tmp_path)
    settings.output_root.mkdir()
    (settings.output_root / "way-out").symlink_to("/etc")

    with pytest.raises(InvalidConfig, match="output_dir must be in one of"):
        output_folder(settings, "way-out/x")


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("TUNEYARD_HOME", "")
    monkeypatch.setenv("PREFECT_API_URL", "")

    assert Settings().home == default_home()
    assert Settings().prefect_api_url is None


def test_a_state_folder_may_be_relative_or_below_a_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("state", "./state/", "~/state", str(tmp_path / "state")):
        monkeypatch.setenv("TUNEYARD_HOME", given)
        assert Settings().home == tmp_path / "state"


def test_a_home_that_nobody_knows_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("TUNEYARD_HOME", "~nobody-at-all/state")

    with pytest.raises(StackError, match="TUNEYARD_HOME is '~nobody-at-all/state', and no home folder is known"):
        Settings()


def test_without_a_checkout_there_is_one_state_folder_for_each_user(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert Settings.model_fields["home"].get_default(call_default_factory=True) == Path("~/.local/share/tuneyard")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_home() == tmp_path / "data" / "tuneyard"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # which the standard has ignored
    assert default_home() == Path("~/.local/share/tuneyard")
