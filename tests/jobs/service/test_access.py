"""The one way to the job service, and the state folder it began with."""

import pytest

from jobs.service.access import StackAccess
from sft.errors import StackError

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("comes_back", ["nothing", "another folder"])
def test_a_state_folder_that_was_moved_away_is_not_made_anew(stack, tmp_path, monkeypatch, comes_back):
    monkeypatch.setattr("jobs.service.access.CHECK_SECONDS", 0.0)
    home = tmp_path / "home"
    home.mkdir()
    with StackAccess(stack.model_copy(update={"home": home})) as access:
        access.open()
        home.rename(tmp_path / "elsewhere")
        if comes_back == "another folder":
            home.mkdir()
        for _ in range(2):
            with pytest.raises(StackError, match=f"the state folder {home} was moved or replaced"):
                access.open()
        if comes_back == "nothing":
            assert not home.exists()
        else:
            home.rmdir()
        (tmp_path / "elsewhere").rename(home)
        access.open()
