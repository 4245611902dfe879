"""The order in which the lanes of `make test` take files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xdist.remote import Producer

from tests.lanes import WHOLE_MACHINE, TwoEnds, sort_for_lanes


class Node:
    """A lane: the numbers of the tests that it was sent, in order."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.sent: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_the_first_lane_takes_files_from_the_front_and_the_other_from_the_end():
    options = SimpleNamespace(loadscopereorder=True, maxschedchunk=None)
    config: Any = SimpleNamespace(option=options, getvalue=lambda name: ["popen", "popen"])
    scheduler = TwoEnds(config, Producer("test", enabled=False))
    tests = [f"tests/test_{file}.py::test_{number}" for file in "abcdef" for number in range(3)]
    nodes: list[Any] = [Node("gw0"), Node("gw1")]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, tests)
    scheduler.schedule()
    while scheduler.has_pending:
        for node in nodes:
            done = [*scheduler.assigned_work[node].values()]
            left = [test for unit in done for test, is_done in unit.items() if not is_done]
            if left:
                scheduler.mark_test_complete(node, tests.index(left[0]))
    first, other = ([tests[index] for index in node.sent] for node in nodes)
    assert first == tests[:9]
    assert other == tests[15:] + tests[12:15] + tests[9:12]


def test_what_needs_the_whole_machine_comes_first_and_then_what_shares_the_stack():
    def item(path: str, *markers: str) -> Any:
        return SimpleNamespace(path=Path(path), get_closest_marker=lambda name: name in markers)

    plain, shares, also = item("tests/sft/test_a.py"), item("tests/api/test_b.py", "stack"), item("tests/api/test_b.py")
    heavy = [item(f"tests/{folder}/test_c.py") for folder in WHOLE_MACHINE]
    items = [plain, also, *reversed(heavy), shares]
    sort_for_lanes(items)
    assert items == [*heavy, also, shares, plain]
