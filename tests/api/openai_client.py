"""OpenAI's client of an API of a test's own, and what tests of its files and uploads send."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai

from jobs.settings import Settings
from tests.jobs.own_data.rows import rows
from tests.live_service import serving_api

CONTENT = rows(*(f"answer {number}" for number in range(30)))
MD5 = hashlib.md5(CONTENT).hexdigest()  # noqa: S324
PART_SIZE = 500
ROWS = {"filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}


@contextmanager
def connected(settings: Settings, key: str = "x") -> Iterator[openai.OpenAI]:
    """OpenAI's client of an API of its own."""
    with (
        serving_api(settings) as url,
        openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=120) as client,
    ):
        yield client


def create(client: openai.OpenAI, content: bytes = CONTENT, filename: str = "rows.jsonl") -> openai.types.FileObject:
    return client.files.create(file=(filename, content), purpose="fine-tune")


def ask(client: openai.OpenAI, method: str, path: str, **values: object) -> httpx.Response:
    """A request that OpenAI's client would not send."""
    base = str(client.base_url).removesuffix("/v1/")
    return httpx.request(method, f"{base}{path}", timeout=120, **values)  # type: ignore[arg-type]


def begin(client: openai.OpenAI, size: int = len(CONTENT)) -> openai.types.Upload:
    return client.uploads.create(bytes=size, **ROWS)  # type: ignore[arg-type]


def send(client: openai.OpenAI, upload: openai.types.Upload, content: bytes = CONTENT) -> list[str]:
    pieces = [content[start : start + PART_SIZE] for start in range(0, len(content), PART_SIZE)]
    return [client.uploads.parts.create(upload.id, data=piece).id for piece in pieces]
