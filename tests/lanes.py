"""Which of the lanes of `make test` runs which files.

Runs that load the whole machine, and tests of the shared stack, follow each other in the first lane; the other lanes
begin at the other end of the list. So two runs with faults never slow each other down, one stack serves nearly all
tests that need one, and the lanes end together wherever they meet.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

WHOLE_MACHINE = ("chaos", "pool", "deploy", "attack", "bench")  # folders, in the order in which their tests run


def sort_for_lanes(items: list[pytest.Item]) -> None:
    """Order the tests by what their files need, the most first; a file's own order stays."""
    with_stack = {item.path for item in items if item.get_closest_marker("stack")}

    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        if folder in WHOLE_MACHINE:
            return WHOLE_MACHINE.index(folder)
        return len(WHOLE_MACHINE) + (item.path not in with_stack)

    items.sort(key=rank)


class TwoEnds(LoadFileScheduling):
    """Files go to the first lane from the front of the list, to the other ones from its end."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        config.option.loadscopereorder = False  # would sort files by how many tests they have
        super().__init__(config, log)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
