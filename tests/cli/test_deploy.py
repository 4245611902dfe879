"""`tuneyard deploy`: what it says about the workers to start."""

import pytest
from typer.testing import CliRunner

from cli.__main__ import main
from cli.deploy import describe_worker


@pytest.mark.parametrize(
    ("kind", "limit", "where"),
    [
        ("process", " --limit 1", "one for each job that may run there at once"),
        ("docker", " --limit 1", "one for each share of its GPUs"),
        ("kubernetes", "", "the pool's limit says how many jobs run"),
        ("of-a-friend", " --limit 1", "one for each job that may run there at once"),
    ],
)
def test_the_command_of_a_worker_is_that_of_its_pool(kind, limit, where):
    command, place = describe_worker({"name": "my gpus", "type": kind})
    assert command == f"prefect worker start --pool 'my gpus' --type {kind}{limit}"
    assert where in place


def test_a_type_that_is_not_known_is_refused():
    done = CliRunner().invoke(main, ["deploy", "--pool-type", "ecs"])
    assert done.exit_code == 2
    assert "kubernetes" in done.output
