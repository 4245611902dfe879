"""Ids by their first characters."""

from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from jobs.engine.listing import Listing
from jobs.storage.id_prefixes import find_offset, id_range
from jobs.storage.run_ids import RunIds
from tuneyard_wire.id_prefixes import is_prefix

WHOLE = "0197ab3c-1d2e-7f00-8123-456789abcdef"


@pytest.mark.parametrize("length", range(4, 37))
def test_an_id_begins_with_its_own_beginning_however_long(length):
    least, greatest = id_range(WHOLE[:length])
    assert least <= UUID(WHOLE) <= greatest
    assert str(least).startswith(WHOLE[:length])
    assert str(greatest).startswith(WHOLE[:length])


@pytest.mark.parametrize("text", [WHOLE.replace("-", ""), WHOLE.upper(), WHOLE[:6].upper(), "0197ab3c1d2e"])
def test_dashes_and_case_may_differ(text):
    least, greatest = id_range(text)
    assert least <= UUID(WHOLE) <= greatest


@pytest.mark.parametrize(
    "text", ["", "019", "----", "0-19", "0197ab3c1-", "0197ab3g", WHOLE + "0", "01 97", "0197\n", "%"]
)
def test_what_begins_no_id_is_refused(text):
    assert not is_prefix(text)
    with pytest.raises(ValueError, match="the first 4 or more characters of an id"):
        id_range(text)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 200, 1000])
def test_the_place_in_a_long_list_is_found_in_few_steps(count):
    ids = sorted((uuid4() for _ in range(count)), reverse=True)
    asked = []

    def id_at(offset):
        asked.append(offset)
        return ids[offset]

    for place, wanted in [*enumerate(ids)][:: max(1, count // 20)]:
        asked.clear()
        assert find_offset(count, id_at, wanted) == place
        assert len(asked) <= 10
    assert find_offset(count, id_at, UUID(int=0)) == count
    assert find_offset(count, id_at, UUID(int=2**128 - 1)) == 0


def test_a_list_that_became_shorter_meanwhile_ends_where_it_ends():
    assert find_offset(8, lambda offset: UUID(int=9 - offset) if offset < 3 else None, UUID(int=0)) == 3


class ManyRuns:
    """Prefect's runs of 600 jobs by id, of which the last one has taken the place of the first one's."""

    def __init__(self) -> None:
        self.runs = sorted((UUID(int=number << 64) for number in range(1, 601)), reverse=True)
        self.ids = RunIds(None)
        self.moved, self.run = UUID(int=(1 << 64) + 1), self.runs[0]
        self.ids._by_job, self.ids._by_run = {self.moved: self.run}, {self.run: self.moved}

    def read_ids(self) -> RunIds:
        return self.ids

    def count(self, _filter: object) -> int:
        return len(self.runs)

    def page(self, _filter: object, _sort: object, limit: int = 200, offset: int = 0) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=self.ids.job_of(run)) for run in self.runs[offset : offset + limit]]


def test_a_job_whose_run_was_made_again_is_found_by_its_own_beginning():
    many = ManyRuns()
    listing = Listing(many, None)
    assert listing._find_ids(many.moved.hex[:16]) == [many.moved, many.runs[-1]]
    assert listing._find_ids(many.run.hex[:16]) == []
    assert listing._find_ids(many.runs[300].hex[:16]) == [many.runs[300]]
