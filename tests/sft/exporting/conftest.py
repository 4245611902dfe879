"""The model and the adapter that the tests of this folder export."""

import pytest

from tests.exported_pair import save_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair"))
