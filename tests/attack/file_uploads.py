"""Files and uploads of OpenAI's interface, sent to do harm: parts in disorder, of others, late, and many at once."""

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.attack.case import Finding, Harm, Target, case
from tests.attack.uploads import AT_ONCE, BOMB_SECONDS, BOMBS, PURPOSE, find_leftovers, make_rows

BEGIN = PURPOSE | {"mime_type": "application/jsonl"}
UPLOADS = "own-data/file-uploads"  # in the state folder
TOLD_BOMBS = ("nul.jsonl.gz", "zip.jsonl", "nested.json")
FORMS: tuple[dict[str, Any], ...] = (
    {"files": {"file": ("attack-form.jsonl", make_rows("form"))}},
    {"files": {"file": ("attack-form.jsonl", make_rows("form"))}, "data": {"purpose": "batch"}},
    {"files": {"file": ("attack-form.jsonl", make_rows("form"))}, "data": PURPOSE | {"more": "x"}},
    {"files": [("file", ("a.jsonl", make_rows("a"))), ("file", ("b.jsonl", make_rows("b")))], "data": PURPOSE},
    {"data": PURPOSE},
    {"json": PURPOSE},
    {"content": make_rows("form"), "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
    {"content": b"--b\r\n" * 20_000, "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
    {"content": make_rows("form"), "headers": {"Content-Type": f"multipart/form-data; boundary={'b' * 5000}"}},
    {"content": make_rows("form"), "headers": {"Content-Type": "multipart/form-data"}},
)


def begin(client: httpx.Client, name: str, size: int) -> str:
    """Path of a new upload."""
    body = BEGIN | {"filename": f"{name}.jsonl", "bytes": size}
    return f"/v1/uploads/{client.post('/v1/uploads', json=body).raise_for_status().json()['id']}"


def put(client: httpx.Client, place: str, part: bytes) -> httpx.Response:
    """Send a part."""
    return client.post(f"{place}/parts", files={"data": part})


def complete(client: httpx.Client, place: str, part_ids: Sequence[Any], content: bytes) -> httpx.Response:
    """Complete an upload of this content."""
    md5 = hashlib.md5(content).hexdigest()  # noqa: S324
    return client.post(f"{place}/complete", json={"part_ids": part_ids, "md5": md5})


def cut(content: bytes, parts: int) -> list[bytes]:
    """The content in so many parts."""
    size = -(-len(content) // parts)
    return [content[start : start + size] for start in range(0, len(content), size)]


@case
def wrong_parts_of_openai_make_no_file(target: Target) -> Iterator[Finding]:
    """Too few, too many, in disorder, of another upload, of another sum, completed and cancelled at once, expired."""
    home, content = target.service.settings.home, make_rows("openai-parts", 400)
    with target.client(timeout_seconds=60) as client, ThreadPoolExecutor(8) as pool:
        place, other = begin(client, "attack-openai", len(content)), begin(client, "attack-other", len(content))
        parts = cut(content, 3)
        ids = [answer.json()["id"] for answer in pool.map(lambda part: put(client, place, part), parts)]
        foreign = put(client, other, b"x").json()["id"]
        orders: list[list[Any]] = [
            [], ids[:2], [*ids, ids[0]], [ids[0]] * 3, ids[::-1], [*ids[:2], foreign], ["x"], ["../../registry"],
            [None], [5], ids * 2000,
        ]  # fmt: skip
        wrong = [complete(client, place, order, content) for order in orders]
        wrong += [
            complete(client, place, ids, content + b"x"),
            put(client, place, b""),
            put(client, place, content * 2),
        ]
        wrong += [client.post(f"{place}/parts", **form) for form in FORMS]
        sizes = (0, -1, 2**62, 2**63, 1e300, "5", None)
        wrong += [client.post("/v1/uploads", json=BEGIN | {"filename": "a.jsonl", "bytes": size}) for size in sizes]
        yield from judge_refusals(wrong)
        refused = [not put(client, place, content[:-1] + bytes([end])).is_success for end in range(65, 75)]
        there = sum(path.stat().st_size for path in (home / place.replace("/v1/uploads", UPLOADS)).iterdir())
        if not all(refused[2:]) or there > 3 * len(content):
            yield Finding(Harm.ESCAPED, f"an upload of {len(content)} bytes keeps {there}: {refused}")
        client.post(f"{other}/cancel").raise_for_status()
        yield from judge_refusals([put(client, other, b"x"), complete(client, other, [foreign], b"x")])

        ends = [*pool.map(lambda _: complete(client, place, ids, content), range(5))]
        if len({end.text for end in ends}) != 1 or not ends[0].is_success:
            yield Finding(Harm.UNSETTLED, f"five that complete an upload: {[end.text[:200] for end in ends]}")
        yield from judge_refusals(
            [client.post(f"{place}/cancel"), put(client, place, b"x"), complete(client, place, ids[::-1], content)]
        )
        yield from judge_file(client, "attack-openai", content)
        for seconds in (0.0, 0.1, 0.5):
            yield from _cancel_while_completing(client, pool, content, seconds)
        yield from _expire(client, home, content)
    yield from find_leftovers(home)


def judge_refusals(answers: Sequence[httpx.Response]) -> Iterator[Finding]:
    """Each is the client's fault, or for want of space."""
    for answer in answers:
        if not answer.is_client_error and answer.status_code != httpx.codes.INSUFFICIENT_STORAGE:
            yield Finding(Harm.UNSETTLED, f"{answer.request.url}: {answer.status_code} {answer.text[:200]}")


def judge_file(client: httpx.Client, name: str, content: bytes | None) -> Iterator[Finding]:
    """Nothing if there is one file of this name with this content, or none where None is wanted; it is deleted then."""
    listed = client.get("/v1/files").raise_for_status().json()["data"]
    found = [file for file in listed if file["filename"] == f"{name}.jsonl"]
    if len(found) != (content is not None):
        yield Finding(Harm.UNSETTLED, f"{name} is {len(found)} files")
    for file in found:
        if client.get(f"/v1/files/{file['id']}/content").content != content:
            yield Finding(Harm.UNSETTLED, f"{name} is another file than was sent")
        client.delete(f"/v1/files/{file['id']}").raise_for_status()


def _cancel_while_completing(
    client: httpx.Client, pool: ThreadPoolExecutor, content: bytes, seconds: float
) -> Iterator[Finding]:
    place = begin(client, "attack-both", len(content))
    ids = [put(client, place, part).json()["id"] for part in cut(content, 2)]
    end = pool.submit(complete, client, place, ids, content)
    time.sleep(seconds)
    cancelled, completed = client.post(f"{place}/cancel"), end.result()
    if cancelled.is_success == completed.is_success or cancelled.is_server_error or completed.is_server_error:
        told = f"{completed.status_code} {completed.text[:200]}, {cancelled.status_code} {cancelled.text[:200]}"
        yield Finding(Harm.UNSETTLED, f"an upload that is cancelled {seconds} s after its completion has begun: {told}")
    if complete(client, place, ids, content).is_success != completed.is_success:
        yield Finding(Harm.UNSETTLED, "an upload that was completed and cancelled at once has two ends")
    yield from judge_file(client, "attack-both", content if completed.is_success else None)


def _expire(client: httpx.Client, home: Path, content: bytes) -> Iterator[Finding]:
    """Its time is over, by its record, before it is completed; the next one that begins removes its parts."""
    place = begin(client, "attack-late", len(content))
    ids = [put(client, place, content).json()["id"]]
    record = home / place.replace("/v1/uploads", UPLOADS) / "upload.json"
    values = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps(values | {"expires_at": values["created_at"]}), encoding="utf-8")
    yield from judge_refusals(
        [put(client, place, b"x"), complete(client, place, ids, content), client.post(f"{place}/cancel")]
    )
    client.post(f"{begin(client, 'attack-next', 5)}/cancel").raise_for_status()
    yield from judge_file(client, "attack-late", None)


@case
def files_of_openai_are_whole_or_refused(target: Target) -> Iterator[Finding]:
    """Forms that are none, or for another purpose, and bombs: nothing of them stays but the reason why not."""
    with target.client(timeout_seconds=BOMB_SECONDS + 30) as client:
        yield from judge_refusals([client.post("/v1/files", **form) for form in FORMS])
        for name in TOLD_BOMBS:
            began = time.monotonic()
            answer = client.post("/v1/files", files={"file": (f"attack-{name}", BOMBS[name]())}, data=PURPOSE)
            if (seconds := time.monotonic() - began) > BOMB_SECONDS:
                yield Finding(Harm.STARVED, f"{name}: an answer after {seconds:.0f} s")
            if answer.is_server_error:
                yield Finding(Harm.UNSETTLED, f"{name}: {answer.status_code} {answer.text[:200]}")
            if answer.is_success:
                file = answer.json()
                if file["status"] != "error" or not file["status_details"]:
                    yield Finding(Harm.UNSETTLED, f"{name} is a file of rows: {file}")
                client.delete(f"/v1/files/{file['id']}").raise_for_status()
        left = [file["filename"] for file in client.get("/v1/files").json()["data"] if "attack" in file["filename"]]
        if left:
            yield Finding(Harm.UNSETTLED, f"files that are none are listed: {left}")
    yield from find_leftovers(target.service.settings.home)


@case
def uploads_of_openai_at_once_are_all_whole(target: Target) -> Iterator[Finding]:
    """Twenty at the same time: half in parts, which come in another order and twice, half as files."""
    contents = {f"attack-at-once-{number}": make_rows(f"once {number}", 2000) for number in range(AT_ONCE)}
    with target.client(timeout_seconds=120) as client, ThreadPoolExecutor(AT_ONCE) as pool:

        def send(number: int, name: str) -> httpx.Response:
            content = contents[name]
            if number % 2:
                return client.post("/v1/files", files={"file": (f"{name}.jsonl", content)}, data=PURPOSE)
            place, parts = begin(client, name, len(content)), cut(content, 4)
            order = random.Random(number).sample(range(4), 4)  # noqa: S311 - no secret
            ids = {turn: put(client, place, parts[turn]).json()["id"] for turn in [*order, *order[:2]]}
            return complete(client, place, [ids[turn] for turn in range(4)], content)

        for name, answer in zip(contents, pool.map(send, range(AT_ONCE), contents), strict=True):
            if not answer.is_success:
                yield Finding(Harm.STARVED, f"{name}: {answer.status_code} {answer.text[:200]}")
        for name, content in contents.items():
            yield from judge_file(client, name, content)
    yield from find_leftovers(target.service.settings.home)
