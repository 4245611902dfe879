"""What loading the libraries does to the collector of garbage."""

import gc
from collections.abc import Iterator

import pytest

from sft.imports import without_collecting


@pytest.fixture
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.enable()


@pytest.mark.usefixtures("collector")
def test_garbage_is_looked_for_as_usual_once_the_libraries_are_there_but_not_among_them() -> None:
    gc.set_threshold(500_000)  # as `python -m flows` does
    with without_collecting():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() > len(kept)
