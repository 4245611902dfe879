"""Files of OpenAI's client when the API is killed: no part is lost, and no file is doubled."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import openai
import pytest

from jobs.settings import Settings
from tests.conftest import wait_until
from tests.e2e.api_process import ApiProcess
from tests.jobs.own_data.rows import rows

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def test_an_api_that_is_killed_while_it_completes_an_upload_loses_no_part_and_makes_no_second_file(
    make_api: Callable[[], ApiProcess], stack: Settings
) -> None:
    content = rows(*(f"answer {number}" for number in range(50_000)))
    md5 = hashlib.md5(content).hexdigest()  # noqa: S324
    staging = stack.home / "own-data/staging"
    server = make_api().start()
    base_url = f"{str(server.client.base_url).rstrip('/')}/v1"
    with openai.OpenAI(api_key="x", base_url=base_url, timeout=120) as client, ThreadPoolExecutor(1) as pool:
        upload = client.uploads.create(
            bytes=len(content), filename="killed.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        pieces = [content[start : start + 2**20] for start in range(0, len(content), 2**20)]
        part_ids = [client.uploads.parts.create(upload.id, data=piece).id for piece in pieces]
        doomed = pool.submit(client.with_options(max_retries=0).uploads.complete, upload.id, part_ids=part_ids)
        wait_until(lambda: doomed.done() or any(staging.glob("*/*")), 60)
        server.kill()
        with suppress(openai.APIConnectionError):
            doomed.result()
        server.start()

        done = client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
        assert done.file is not None
        assert client.files.content(done.file.id).read() == content
        assert [file.id for file in client.files.list() if file.filename == "killed.jsonl"] == [done.file.id]
        client.files.delete(done.file.id)
    assert [*staging.iterdir()] == []
