"""Beside a Prefect that accepts and never answers: what needs it says so soon, what does not answers at once."""

import asyncio
import threading
import time
from contextlib import closing

import httpx
import pytest
import uvicorn

from api.main import create_app
from jobs.network.deadlines import READ_SECONDS
from jobs.settings import Settings
from tests.conftest import free_port
from tests.live_service import wait_until_up
from tests.stalling import StallingServer

pytestmark = pytest.mark.stack
HUNG = 45


@pytest.fixture
def url(stack, tmp_path):
    """Of an API whose database is real and whose Prefect is silent."""
    with closing(StallingServer("silent")) as prefect:
        settings = Settings(
            home=tmp_path,
            database_url=stack.database_url,
            prefect_api_url=f"{prefect.url}/api",
            mlflow_tracking_uri=stack.mlflow_tracking_uri,
        )
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_until_up(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


async def ask(url):
    """45 requests that need Prefect, meanwhile three that do not; then three more, when it is known to be away."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def measure(path):
            began = time.monotonic()
            answer = await client.get(path)
            return answer, time.monotonic() - began

        paths = ("/train", "/queue", "/train/550e8400-e29b-41d4-a716-446655440000", "/api/sft/jobs")
        hung = [asyncio.create_task(measure(paths[number % len(paths)])) for number in range(HUNG)]
        await asyncio.sleep(0.5)
        others = [await measure(path) for path in ("/health", "/", "/api/sft/configs")]
        return others, await asyncio.gather(*hung), [await measure("/train") for _ in range(3)]


def test_requests_that_hang_end_and_leave_the_others_alone(url):
    others, hung, later = asyncio.run(ask(url))

    assert [answer.status_code for answer, _ in others] == [200, 200, 200]
    assert max(seconds for _, seconds in others) < READ_SECONDS - 1.5  # they do not wait for those that hang
    assert max(seconds for _, seconds in hung) < READ_SECONDS + 24
    for answer, _ in (*hung, *later):
        assert (answer.status_code, answer.json()["code"]) == (503, "stack_unavailable")
        assert answer.json()["detail"].startswith("Prefect's API ")
        assert int(answer.headers["Retry-After"]) > 0
    assert min(seconds for _, seconds in later) < 1  # one of them may look whether it is there again
